//! What has been spent: the API server's own counts, and CPU time.

/// Counts since the start of each process.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counters {
    /// Requests for our objects, watches included.
    pub(super) requests: f64,
    /// Events told to watches of our objects.
    pub(super) events: f64,
    /// Bytes of answers and of watches' events.
    pub(super) bytes: f64,
    /// Lists of NodeEncryptions, a page each, and the objects in them.
    pub(super) lists: f64,
    pub(super) listed: f64,
    /// The controller's CPU time, seconds.
    pub(super) controller: f64,
    /// The API server's CPU time, seconds.
    pub(super) server: f64,
    /// etcd's.
    pub(super) etcd: f64,
    /// The agents' together.
    pub(super) agents: f64,
}

impl Counters {
    /// Reads what the API server says of itself in Prometheus' text format.
    pub(super) fn read(metrics: &str) -> Self {
        let mut counters = Self::default();
        for line in metrics.lines().filter(|line| is_ours(line)) {
            let Some((name, _)) = line.split_once('{') else {
                continue;
            };
            let value = line.rsplit(' ').next().and_then(|text| text.parse().ok());
            let value: f64 = value.unwrap_or(0.0);
            match name {
                "apiserver_request_total" => {
                    counters.requests += value;
                    if line.contains("verb=\"LIST\"") && is_of_nodes(line) {
                        counters.lists += value;
                    }
                }
                "apiserver_cache_list_returned_objects_total" if is_of_nodes(line) => {
                    counters.listed += value;
                }
                "apiserver_watch_events_total" => counters.events += value,
                "apiserver_watch_events_sizes_sum" | "apiserver_response_sizes_sum" => {
                    counters.bytes += value;
                }
                _ => {}
            }
        }
        counters
    }

    /// What was spent since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            events: self.events - before.events,
            bytes: self.bytes - before.bytes,
            lists: self.lists - before.lists,
            listed: self.listed - before.listed,
            controller: self.controller - before.controller,
            server: self.server - before.server,
            etcd: self.etcd - before.etcd,
            agents: self.agents - before.agents,
        }
    }
}

impl std::fmt::Display for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} requests, {} events, {:.0} MiB; CPU of controller {:.2} s, API server {:.1} s",
            self.requests,
            self.events,
            self.bytes / f64::from(1 << 20),
            self.controller,
            self.server
        )
    }
}

fn is_ours(line: &str) -> bool {
    ["testudo.dev", "certificates.k8s.io"]
        .iter()
        .any(|group| line.contains(&format!("group=\"{group}\"")))
}

fn is_of_nodes(line: &str) -> bool {
    line.contains("resource=\"nodeencryptions\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_counted() {
        let metrics = "\
# HELP apiserver_request_total x
apiserver_request_total{code=\"200\",group=\"testudo.dev\",resource=\"nodeencryptions\",verb=\"LIST\"} 3
apiserver_cache_list_returned_objects_total{group=\"testudo.dev\",resource=\"nodeencryptions\"} 30
apiserver_cache_list_returned_objects_total{group=\"testudo.dev\",resource=\"trustbundles\"} 3
apiserver_request_total{code=\"200\",group=\"certificates.k8s.io\",verb=\"GET\"} 2
apiserver_request_total{code=\"200\",group=\"coordination.k8s.io\",verb=\"GET\"} 100
apiserver_watch_events_total{group=\"testudo.dev\",resource=\"nodeencryptions\"} 1e+03
apiserver_watch_events_sizes_sum{group=\"testudo.dev\"} 2048
apiserver_watch_events_sizes_bucket{group=\"testudo.dev\",le=\"1024\"} 7
apiserver_response_sizes_sum{group=\"testudo.dev\"} 1024
";
        let counters = Counters::read(metrics);
        assert_eq!((counters.requests, counters.events), (5.0, 1000.0));
        assert_eq!(counters.bytes, 3072.0);
        assert_eq!((counters.lists, counters.listed), (3.0, 30.0));
        let none = counters.since(&counters);
        assert_eq!(none, Counters::default());
    }
}
