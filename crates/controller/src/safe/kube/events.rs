//! News as Events (`events.k8s.io/v1`). What is said again is counted in the Event that is there, and of
//! each reason only so many are made in a time: a thousand nodes are no thousand Events.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::json;
use testudo_crypto::{Random, SystemRandom};
use testudo_model::policy::CLUSTER;
use testudo_model::{API_VERSION, UnixTime};
use testudo_pki::hex;
use testudo_store_kube::call;
use tokio::sync::mpsc;
use tracing::debug;

use super::CALL;
use crate::news::{About, News};
use crate::run::seconds;

/// Who reports.
const CONTROLLER: &str = "testudo.dev/controller";
/// News that wait to be written.
const QUEUE: usize = 256;
/// The same news within this time are one Event.
const SERIES: Duration = Duration::from_secs(600);
/// How often the count of an Event is written, at most.
const FLUSH: Duration = Duration::from_secs(30);
/// Of each reason so many are made at once,
const BURST: f64 = 25.0;
/// and one more after each such time.
const REFILL: Duration = Duration::from_secs(10);
/// Series kept in mind.
const MOST: usize = 512;
/// A note of an Event has this many bytes at most.
const NOTE: usize = 1024;

/// Takes news and writes them down when it can.
#[derive(Clone)]
pub(super) struct Herald {
    queue: mpsc::Sender<News>,
    dropped: Arc<AtomicU64>,
}

impl Herald {
    /// Writes to this API server; `me` is who we are, `namespace` where our Secrets are.
    pub(super) fn start(client: Client, namespace: &str, me: &str) -> Self {
        let (queue, news) = mpsc::channel(QUEUE);
        let dropped = Arc::<AtomicU64>::default();
        let writer = Writer {
            client,
            namespace: namespace.to_owned(),
            me: me.chars().take(128).collect(),
            ledger: Ledger::default(),
            dropped: Arc::clone(&dropped),
        };
        tokio::spawn(writer.work(news));
        Self { queue, dropped }
    }

    /// Tells.
    pub(super) fn tell(&self, news: News) {
        if self.queue.try_send(news).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// News that became no Event, because there were too many.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// What has been told lately.
#[derive(Default)]
struct Ledger {
    series: HashMap<News, Series>,
    /// By reason: how many may be made now, and as of when.
    buckets: HashMap<&'static str, (f64, Instant)>,
}

/// One Event.
#[derive(Clone, Debug)]
struct Series {
    /// Namespace and name; none while it could not be made.
    event: (String, String),
    count: u64,
    last: Instant,
    /// The count that stands in the API, and since when.
    written: (u64, Instant),
}

/// What is to be done with news.
#[derive(Debug, PartialEq, Eq)]
enum Deed {
    Make,
    Count,
    Drop,
}

impl Ledger {
    fn take(&mut self, news: &News, now: Instant) -> Deed {
        if let Some(series) = self.series.get_mut(news)
            && now.saturating_duration_since(series.last) < SERIES
        {
            series.count += 1;
            series.last = now;
            return Deed::Count;
        }
        let bucket = self.buckets.entry(news.reason).or_insert((BURST, now));
        let gone = now.saturating_duration_since(bucket.1);
        let filled = bucket.0 + gone.as_secs_f64() / REFILL.as_secs_f64();
        *bucket = (filled.min(BURST), now);
        if bucket.0 < 1.0 || self.series.len() >= MOST {
            return Deed::Drop;
        }
        bucket.0 -= 1.0;
        Deed::Make
    }

    /// Series whose count is to be written now; forgets those that have ended.
    fn due(&mut self, now: Instant) -> Vec<(News, Series)> {
        let due = |series: &Series| {
            series.count > series.written.0
                && now.saturating_duration_since(series.written.1) >= FLUSH
        };
        let mut found = Vec::new();
        for (news, series) in &mut self.series {
            if due(series) {
                series.written = (series.count, now);
                found.push((news.clone(), series.clone()));
            }
        }
        self.series
            .retain(|_, series| now.saturating_duration_since(series.last) < SERIES);
        found
    }
}

struct Writer {
    client: Client,
    namespace: String,
    me: String,
    ledger: Ledger,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    async fn work(mut self, mut news: mpsc::Receiver<News>) {
        let mut tick = tokio::time::interval(FLUSH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                next = news.recv() => match next {
                    Some(news) => self.take(news).await,
                    None => return,
                },
                _ = tick.tick() => self.flush().await,
            }
        }
    }

    async fn take(&mut self, news: News) {
        let now = Instant::now();
        match self.ledger.take(&news, now) {
            Deed::Count => {}
            Deed::Drop => {
                self.dropped.fetch_add(1, Relaxed);
            }
            Deed::Make => match self.make(&news).await {
                Ok(event) => {
                    let series = Series {
                        event,
                        count: 1,
                        last: now,
                        written: (1, now),
                    };
                    self.ledger.series.insert(news, series);
                }
                // The log has said it.
                Err(error) => {
                    self.dropped.fetch_add(1, Relaxed);
                    debug!("no Event is made: {error}");
                }
            },
        }
    }

    async fn flush(&mut self) {
        for (_, series) in self.ledger.due(Instant::now()) {
            let (namespace, name) = &series.event;
            let patch = Patch::Merge(json!({
                "series": { "count": series.count, "lastObservedTime": micro_time() },
            }));
            let api = self.api(namespace);
            if let Err(error) = call(CALL, api.patch(name, &PatchParams::default(), &patch)).await {
                debug!("an Event is not counted: {error}");
            }
        }
    }

    fn api(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource())
    }

    async fn make(&self, news: &News) -> kube::Result<(String, String)> {
        let (about, name) = about(&news.about);
        let own = matches!(news.about, About::Secret(_)).then_some(self.namespace.as_str());
        let api: Api<DynamicObject> = match own {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &about),
            None => Api::all_with(self.client.clone(), &about),
        };
        // kubectl finds Events by it. What is gone has none.
        let stands = call(CALL, api.get_metadata_opt(name)).await?;
        let regarding = json!({
            "apiVersion": about.api_version,
            "kind": about.kind,
            "name": name,
            "namespace": own,
            "uid": stands.and_then(|object| object.metadata.uid),
        });
        // Events of what belongs to no namespace stand in this one.
        let namespace = own.unwrap_or("default");
        let mut salt = [0; 8];
        SystemRandom::new().fill(&mut salt);
        let begin: String = name.chars().take(200).collect();
        let name = format!("{}.{}", begin.trim_end_matches(['.', '-']), hex(&salt));
        let event: DynamicObject = serde_json::from_value(json!({
            "apiVersion": resource().api_version,
            "kind": resource().kind,
            "metadata": { "name": name, "namespace": namespace },
            "eventTime": micro_time(),
            "reportingController": CONTROLLER,
            "reportingInstance": self.me,
            "type": if news.warning { "Warning" } else { "Normal" },
            "reason": news.reason,
            "action": news.action,
            "note": cut(&news.text),
            "regarding": regarding,
        }))
        .map_err(kube::Error::SerdeError)?;
        let api = self.api(namespace);
        call(CALL, api.create(&PostParams::default(), &event)).await?;
        Ok((namespace.to_owned(), name))
    }
}

/// The resource, and the name in it.
fn about(about: &About) -> (ApiResource, &str) {
    let (api_version, kind, plural, name) = match about {
        About::Policy => (
            API_VERSION,
            "EncryptionPolicy",
            "encryptionpolicies",
            CLUSTER,
        ),
        About::Bundle => (API_VERSION, "TrustBundle", "trustbundles", CLUSTER),
        About::Connection(name) => (
            API_VERSION,
            "ExternalConnection",
            "externalconnections",
            name.as_str(),
        ),
        About::Node(name) => ("v1", "Node", "nodes", name.as_str()),
        About::Secret(name) => ("v1", "Secret", "secrets", name.as_str()),
        About::Request(name) => (
            "certificates.k8s.io/v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            name.as_str(),
        ),
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    (resource, name)
}

/// At most so much as fits, cut between characters.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(NOTE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Now, as `metav1.MicroTime` has it.
fn micro_time() -> String {
    let time = UnixTime(i64::try_from(seconds()).unwrap_or(0)).to_rfc3339();
    format!("{}.000000Z", time.trim_end_matches('Z'))
}

fn resource() -> ApiResource {
    ApiResource {
        group: "events.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "events.k8s.io/v1".to_owned(),
        kind: "Event".to_owned(),
        plural: "events".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(name: &str) -> News {
        let about = About::Request(name.to_owned());
        News::bad(about, "Denied", "Deny", "no")
    }

    fn made(ledger: &mut Ledger, news: News, now: Instant) {
        let series = Series {
            event: ("default".to_owned(), "x".to_owned()),
            count: 1,
            last: now,
            written: (1, now),
        };
        ledger.series.insert(news, series);
    }

    #[test]
    fn what_is_said_again_is_counted_and_many_are_few() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        assert_eq!(ledger.take(&news("a"), start), Deed::Make);
        made(&mut ledger, news("a"), start);
        for _ in 0..1000 {
            assert_eq!(ledger.take(&news("a"), start), Deed::Count);
        }
        assert!(ledger.due(start).is_empty(), "not yet");
        let later = start + FLUSH;
        let due = ledger.due(later);
        assert_eq!((due.len(), due[0].1.count), (1, 1001));
        assert!(ledger.due(later + FLUSH).is_empty(), "nothing was added");
        // A thousand that differ.
        let deeds = (0..1000).map(|n| ledger.take(&news(&n.to_string()), later));
        let makes = deeds.filter(|deed| *deed == Deed::Make).count();
        assert_eq!(makes, 25, "one was used, three have come back");
        // Other reasons have their own room.
        let other = News::good(About::Policy, "Phase", "Step", "Strict");
        assert_eq!(ledger.take(&other, later), Deed::Make);
        // After its time the same is news again.
        let end = later + SERIES;
        ledger.due(end);
        assert_eq!(ledger.take(&news("a"), end), Deed::Make);
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("abc"), "abc");
        let long = "ä".repeat(600);
        assert_eq!(cut(&long).len(), 1024);
        assert_eq!(cut(&format!("a{long}")).len(), 1023);
    }
}
