//! Objects of the API listed once, then followed by watches, and listed anew only where the API server has
//! forgotten where a watch stood, or nothing is heard of it. What does not last is begun again after a pause.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use testudo_crypto::{Random, SystemRandom};
use tokio::time::Instant;

use crate::call::call;
use crate::verdict;

/// How long a page of a list may take. An API server that a thousand agents ask at once has them wait in a
/// queue, for a quarter of a minute by itself; a list that is given up and asked for anew is twice the work.
const LISTING: Duration = Duration::from_secs(45);

/// How many objects come in one answer to a list.
const PAGE: u32 = 500;

/// After this many seconds the API server ends a watch, and it is begun anew where it stood.
const WATCH_SECONDS: u32 = 270;

/// Longest silence, of one watch or of several. A bookmark comes about once a minute; a connection that is
/// dead and does not know it says nothing, and neither does a proxy that ends all watches.
const SILENCE: Duration = Duration::from_secs(150);

/// First and longest pause before the next try.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(20));

/// A watch that ends earlier has not lasted, whatever it brought.
const SHORT: Duration = Duration::from_secs(1);

/// So many watches in a row do not last before it is said.
const UNSPOKEN: u32 = 5;

/// What [`ListWatch::next`] has to tell.
#[derive(Debug)]
pub enum Heard<T> {
    /// All that stands now.
    Listed(Vec<T>),
    /// A watch has begun: the API server answers.
    Watching,
    /// An object is new or another than before.
    Changed(T),
    /// An object was deleted.
    Gone(T),
    /// The API server is away or refuses. It is tried again.
    Failed(kube::Error),
}

/// What is kept of an object, of which there may be thousands.
type Keep<K, T> = Box<dyn Fn(K) -> T + Send + Sync>;

/// Objects that are followed.
pub struct ListWatch<K, T> {
    api: Api<K>,
    selection: ListParams,
    keep: Keep<K, T>,
    silence: Duration,
    /// Where the next watch begins; none where a list is needed.
    version: Option<String>,
    watch: Option<Running<K>>,
    /// When something was heard last, or the API server was away, which is no silence.
    heard: Instant,
    pace: Pace,
    /// Nothing is tried before.
    resume: Instant,
}

/// A watch from its beginning to its end.
struct Running<K> {
    stream: Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<K>>> + Send>>,
    began: Instant,
    brought: bool,
}

/// Why a list or watch has ended.
enum End {
    /// The watch goes on where it stood.
    Closed,
    /// The version it stood at is forgotten.
    TooOld,
    Failed(kube::Error),
}

impl<K, T> ListWatch<K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Objects by the labels and fields of `selection`. Nothing is asked before the first
    /// [`ListWatch::next`].
    pub fn new(
        api: Api<K>,
        selection: ListParams,
        keep: impl Fn(K) -> T + Send + Sync + 'static,
    ) -> Self {
        let now = Instant::now();
        Self {
            api,
            selection,
            keep: Box::new(keep),
            silence: SILENCE,
            version: None,
            watch: None,
            heard: now,
            pace: Pace::default(),
            resume: now,
        }
    }

    /// Waits for what is to be told next. It never ends: what fails is told and tried again.
    pub async fn next(&mut self) -> Heard<T> {
        loop {
            tokio::time::sleep_until(self.resume).await;
            match self.step().await {
                Ok(Some(heard)) => return heard,
                Ok(None) => {}
                Err(end) => {
                    if let Some(error) = self.ended(end) {
                        return Heard::Failed(error);
                    }
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Heard<T>>, End> {
        let Some(version) = &mut self.version else {
            let listed = list(&self.api, self.selection.clone(), &*self.keep).await;
            let (all, version) = listed.map_err(End::of)?;
            self.version = Some(version);
            self.heard = Instant::now();
            return Ok(Some(Heard::Listed(all)));
        };
        let Some(watch) = &mut self.watch else {
            let params = WatchParams {
                label_selector: self.selection.label_selector.clone(),
                field_selector: self.selection.field_selector.clone(),
                timeout: Some(WATCH_SECONDS),
                bookmarks: true,
                send_initial_events: false,
            };
            let begun = call(LISTING, self.api.watch(&params, version)).await;
            self.watch = Some(Running {
                stream: Box::pin(begun.map_err(End::of)?),
                began: Instant::now(),
                brought: false,
            });
            return Ok(Some(Heard::Watching));
        };
        let quiet = self.heard + self.silence;
        let next = match tokio::time::timeout_at(quiet, watch.stream.try_next()).await {
            Ok(next) => next.map_err(End::of)?,
            Err(_) => return Err(End::Closed),
        };
        let (newer, heard) = match next {
            None => return Err(End::Closed),
            Some(WatchEvent::Error(status)) => return Err(End::of(kube::Error::Api(status))),
            Some(WatchEvent::Bookmark(mark)) => (Some(mark.metadata.resource_version), None),
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                let newer = object.resource_version();
                (newer, Some(Heard::Changed((self.keep)(object))))
            }
            Some(WatchEvent::Deleted(object)) => {
                let newer = object.resource_version();
                (newer, Some(Heard::Gone((self.keep)(object))))
            }
        };
        watch.brought = true;
        self.heard = Instant::now();
        if let Some(newer) = newer {
            *version = newer;
        }
        Ok(heard)
    }

    /// Sets when and how it goes on; an error that is to be told.
    fn ended(&mut self, end: End) -> Option<kube::Error> {
        let now = Instant::now();
        let lasted = match self.watch.take() {
            Some(watch) => self.pace.watched(now - watch.began, watch.brought),
            None => false,
        };
        let pause = match &end {
            End::Closed => (!lasted).then(|| self.pace.failed()),
            End::TooOld => self.pace.too_old(),
            End::Failed(_) => Some(self.pace.failed()),
        };
        self.resume = now + pause.unwrap_or_default();
        match end {
            End::Failed(error) => {
                self.heard = now;
                return Some(error);
            }
            End::TooOld => self.version = None,
            End::Closed if now - self.heard >= self.silence => self.version = None,
            End::Closed => {}
        }
        if pause.is_some() && self.pace.tries == UNSPOKEN {
            let what = self.api.resource_url();
            tracing::warn!("watches of {what} do not last: news of it come late");
        }
        None
    }
}

impl End {
    fn of(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if verdict::is_too_old(status) => Self::TooOld,
            _ => Self::Failed(error),
        }
    }
}

/// All objects of a selection, in pages, and the version of the whole. Each page is let go of before
/// the next is asked for, but for what is kept.
pub(crate) async fn list<K, T>(
    api: &Api<K>,
    mut selection: ListParams,
    keep: &(dyn Fn(K) -> T + Send + Sync),
) -> kube::Result<(Vec<T>, String)>
where
    K: Clone + DeserializeOwned + Debug,
{
    selection.limit = Some(PAGE);
    let mut found = Vec::new();
    loop {
        let page = call(LISTING, api.list(&selection)).await?;
        found.extend(page.items.into_iter().map(keep));
        selection.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if selection.continue_token.is_none() {
            return Ok((found, page.metadata.resource_version.unwrap_or_default()));
        }
    }
}

/// When the next try may be.
#[derive(Debug, Default)]
struct Pace {
    /// Failures, and watches that did not last, since the last one that did.
    tries: u32,
    /// Whether a version was forgotten since then.
    forgotten: bool,
}

impl Pace {
    /// A watch has ended; whether it lasted: it brought something and was not short, or lived so long that
    /// watches like it come no faster than tries with pauses do. Then there is nothing to make up for.
    fn watched(&mut self, lived: Duration, brought: bool) -> bool {
        let lasted = lived >= PAUSES.1 || (brought && lived >= SHORT);
        if lasted {
            *self = Self::default();
        }
        lasted
    }

    /// The pause before another list: none at first, for that is how an API server forgets.
    fn too_old(&mut self) -> Option<Duration> {
        let again = std::mem::replace(&mut self.forgotten, true);
        again.then(|| self.failed())
    }

    /// The pause after a failure, or after a watch that did not last.
    fn failed(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        pause(self.tries)
    }
}

/// How long to wait after so many tries that failed: longer each time, and never the same for two, for a
/// thousand agents lose their watches at once.
pub fn pause(tries: u32) -> Duration {
    let longest = PAUSES.0 * (1 << tries.min(10));
    let mut random = [0u8; 2];
    SystemRandom::new().fill(&mut random);
    let part = f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX);
    longest.min(PAUSES.1).mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use kube::{Client, Config};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    /// A busy machine may take so long for anything here.
    const LONG: Duration = Duration::from_secs(120);

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Asked {
        List,
        Watch,
    }

    /// What the server does with watches.
    #[derive(Clone, Copy)]
    enum Watches {
        /// Answers 200 and ends.
        End,
        /// Says that the version is forgotten.
        Forget,
        /// Answers 200 and says nothing.
        Hang,
    }

    async fn answer(
        mut stream: TcpStream,
        watches: Watches,
        asked: mpsc::UnboundedSender<(Asked, Instant)>,
    ) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let at = Instant::now();
        let head = String::from_utf8(head).unwrap();
        let is_watch = head.lines().next().unwrap().contains("watch=");
        let gone = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
            "reason": "Expired", "message": "too old resource version"}});
        let list = json!({"kind": "NodeList", "apiVersion": "v1",
            "metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "n1"}}]});
        let body = match (is_watch, watches) {
            (false, _) => list.to_string(),
            (true, Watches::Forget) => format!("{gone}\n"),
            (true, _) => String::new(),
        };
        let length = body.len();
        let mut text = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n".to_owned();
        let hangs = is_watch && matches!(watches, Watches::Hang);
        text += &match hangs {
            true => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
            false => format!("Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"),
        };
        stream.write_all(text.as_bytes()).await.unwrap();
        let kind = if is_watch { Asked::Watch } else { Asked::List };
        // Who asked may have ended with the test.
        let _ = asked.send((kind, at));
        if hangs {
            let _ = stream.read_u8().await;
        }
    }

    /// What was asked, and when.
    type Asks = mpsc::UnboundedReceiver<(Asked, Instant)>;

    /// What a follower asks such a server for, one after the other.
    async fn follow(watches: Watches, silence: Duration) -> Asks {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let (sender, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, watches, sender.clone()));
            }
        });
        let client = Client::try_from(Config::new(server.parse().unwrap())).unwrap();
        let api: Api<Node> = Api::all(client);
        let mut nodes = ListWatch::new(api, ListParams::default(), |node: Node| node.name_any());
        nodes.silence = silence;
        tokio::spawn(async move {
            loop {
                match nodes.next().await {
                    Heard::Listed(names) => assert_eq!(names, ["n1"]),
                    Heard::Watching => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        asked
    }

    /// The next question, which must be this one, and its time.
    async fn at(asked: &mut Asks, wanted: Asked) -> Instant {
        let next = timeout(LONG, asked.recv()).await;
        let (found, at) = next.expect("nothing more is asked").unwrap();
        assert_eq!(found, wanted);
        at
    }

    /// The least of three pauses: half of 0.4, 0.8 and 1.6 s.
    const THREE: Duration = Duration::from_millis(1400);

    #[tokio::test]
    async fn a_watch_that_ends_at_once_is_begun_again_after_growing_pauses() {
        let mut asked = follow(Watches::End, SILENCE).await;
        at(&mut asked, Asked::List).await;
        let first = at(&mut asked, Asked::Watch).await;
        at(&mut asked, Asked::Watch).await;
        at(&mut asked, Asked::Watch).await;
        let fourth = at(&mut asked, Asked::Watch).await;
        assert!(fourth - first >= THREE, "{:?}", fourth - first);
    }

    #[tokio::test]
    async fn a_version_that_is_forgotten_again_and_again_is_listed_after_growing_pauses() {
        let mut asked = follow(Watches::Forget, SILENCE).await;
        let mut lists = Vec::new();
        for _ in 0..5 {
            lists.push(at(&mut asked, Asked::List).await);
            at(&mut asked, Asked::Watch).await;
        }
        // Between the first two there is no pause.
        assert!(lists[4] - lists[1] >= THREE, "{:?}", lists[4] - lists[1]);
    }

    #[tokio::test]
    async fn after_a_silence_all_is_listed_again() {
        let silence = Duration::from_millis(300);
        let mut hangs = follow(Watches::Hang, silence).await;
        for _ in 0..2 {
            at(&mut hangs, Asked::List).await;
            at(&mut hangs, Asked::Watch).await;
        }
        // Also where it is made of watches that a proxy ends.
        let mut ends = follow(Watches::End, silence).await;
        at(&mut ends, Asked::List).await;
        let again = async { while ends.recv().await.unwrap().0 != Asked::List {} };
        timeout(LONG, again).await.expect("nothing is listed again");
    }

    #[test]
    fn what_lasts_is_gone_on_with_at_once_and_the_rest_ever_later() {
        let (short, second) = (Duration::from_millis(999), Duration::from_secs(1));
        let mut pace = Pace::default();
        for (lived, brought) in [(short, true), (second, false)] {
            assert!(!pace.watched(lived, brought), "{lived:?}");
        }
        assert_eq!(pace.too_old(), None);
        let mut least = Duration::ZERO;
        for tries in 1..=7 {
            let pause = pace.too_old().unwrap();
            assert!(pause >= least && pause <= PAUSES.1, "{tries}: {pause:?}");
            least = (PAUSES.0 * (1 << (tries + 1))).min(PAUSES.1) / 2;
        }
        assert!(!pace.watched(short, true));
        assert!(pace.failed() >= PAUSES.1 / 2);
        for (lived, brought) in [(second, true), (PAUSES.1, false)] {
            pace.failed();
            assert!(pace.watched(lived, brought), "{lived:?}");
            assert_eq!((pace.tries, pace.forgotten), (0, false));
        }
        assert!(pace.failed() <= PAUSES.0 * 2);
    }
}
