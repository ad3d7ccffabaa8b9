//! A page of metrics. Names are by Prometheus' convention: units in the plural at the end, and
//! `_total` after a counter, which the encoder puts there.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The values of a label set, in the order they are shown.
type Labels = Vec<(&'static str, String)>;

/// All metrics at one moment.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<Family>,
}

/// Metrics of one name.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Labels, Sample)>,
}

#[derive(Debug)]
enum Sample {
    Counter(ConstCounter<u64>),
    Gauge(ConstGauge<f64>),
    Durations(Histogram),
}

impl Page {
    /// Metrics that only rise while the daemon runs. `name` without `_total`; `help` is a sentence
    /// without its full stop.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(name, help, MetricType::Counter)
    }

    /// Metrics that rise and fall.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(name, help, MetricType::Gauge)
    }

    /// Durations; `name` ends in `_seconds`.
    pub fn histogram(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(name, help, MetricType::Histogram)
    }

    /// One gauge for each of `all`: 1 for the one that is `now`, 0 for the others.
    pub fn state<T: fmt::Display + PartialEq>(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        all: &[T],
        now: &T,
    ) {
        let family = self.gauge(name, help);
        for state in all {
            family.gauge([(label, state.to_string())], f64::from(state == now));
        }
    }

    /// The page in OpenMetrics text.
    pub fn encode(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            // A String takes everything.
            Err(fmt::Error) => String::new(),
        }
    }

    fn family(&mut self, name: &'static str, help: &'static str, kind: MetricType) -> &mut Family {
        self.families.push(Family {
            name,
            help,
            kind,
            samples: Vec::new(),
        });
        let last = self.families.len() - 1;
        &mut self.families[last]
    }
}

impl Family {
    /// Adds a counter's value.
    pub fn count<const N: usize>(&mut self, labels: [(&'static str, String); N], value: u64) {
        debug_assert!(matches!(self.kind, MetricType::Counter), "{}", self.name);
        self.samples
            .push((labels.into(), Sample::Counter(ConstCounter::new(value))));
    }

    /// Adds a gauge's value.
    pub fn gauge<const N: usize>(&mut self, labels: [(&'static str, String); N], value: f64) {
        debug_assert!(matches!(self.kind, MetricType::Gauge), "{}", self.name);
        self.samples
            .push((labels.into(), Sample::Gauge(ConstGauge::new(value))));
    }

    /// Adds what was observed.
    pub fn durations<const N: usize>(
        &mut self,
        labels: [(&'static str, String); N],
        durations: &Durations,
    ) {
        debug_assert!(matches!(self.kind, MetricType::Histogram), "{}", self.name);
        let sample = Sample::Durations(durations.0.clone());
        self.samples.push((labels.into(), sample));
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.families {
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            match family.samples.as_slice() {
                [(labels, sample)] if labels.is_empty() => sample.encode(metric)?,
                samples => {
                    for (labels, sample) in samples {
                        sample.encode(metric.encode_family(labels)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Sample {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Sample::Counter(counter) => counter.encode(encoder),
            Sample::Gauge(gauge) => gauge.encode(encoder),
            Sample::Durations(histogram) => histogram.encode(encoder),
        }
    }
}

/// How long things took, in buckets of seconds.
#[derive(Clone, Debug)]
pub struct Durations(Histogram);

impl Durations {
    /// Buckets from 1 ms to 32 s, each twice the one before.
    pub fn new() -> Self {
        Self(Histogram::new(exponential_buckets(0.001, 2.0, 16)))
    }

    /// Takes one in.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

impl Default for Durations {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_as_open_metrics() {
        let mut page = Page::default();
        let drops = page.counter("testudo_dropped_packets", "Packets dropped");
        drops.count([("reason", "clear_inbound".into())], 3);
        drops.count([("reason", "replay".into())], 0);
        page.gauge("testudo_tunnels_up", "Tunnels that stand")
            .gauge([], 2.0);
        page.state(
            "testudo_phase",
            "Phase in force",
            "phase",
            &["A", "B"],
            &"B",
        );
        let took = Durations::new();
        took.observe(Duration::from_millis(3));
        page.histogram("testudo_handshake_seconds", "Time to authenticate a peer")
            .durations([("role", "initiator".into())], &took);
        let text = page.encode();
        for line in [
            "# TYPE testudo_dropped_packets counter",
            "testudo_dropped_packets_total{reason=\"clear_inbound\"} 3",
            "testudo_dropped_packets_total{reason=\"replay\"} 0",
            "testudo_tunnels_up 2.0",
            "testudo_phase{phase=\"A\"} 0.0",
            "testudo_phase{phase=\"B\"} 1.0",
            "testudo_handshake_seconds_count{role=\"initiator\"} 1",
            "testudo_handshake_seconds_bucket{le=\"0.004\",role=\"initiator\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn what_a_peer_chose_cannot_break_a_line() {
        let mut page = Page::default();
        page.gauge("x", "X")
            .gauge([("name", "a\"b\\c\nd 1\n".into())], 1.0);
        let text = page.encode();
        assert!(
            text.contains("x{name=\"a\\\"b\\\\c\\nd 1\\n\"} 1.0\n"),
            "{text}"
        );
    }
}
