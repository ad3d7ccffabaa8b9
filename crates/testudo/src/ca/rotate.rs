//! `testudo ca rotate`: asks for a rotation of the CA and follows it, or takes it back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use testudo_model::bundle::TrustBundleKind;
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind, TAKE_BACK_CA};
use testudo_model::{CaPhase, CaWaiting, TrustBundleStatus};
use testudo_store::{Event, Store, Watch};
use testudo_store_kube::AnyStore;

use crate::ca::waiting;
use crate::exit::{CheckFailed, Outcome, TimedOut};
use crate::global::Global;
use crate::output;

/// Nodes that hold a rotation for so long are named once more.
const STUCK: Duration = Duration::from_secs(5);

/// Runs `ca rotate`, with or without `--abort`.
pub(super) async fn run(store: &AnyStore, abort: bool, global: &Global) -> Outcome {
    let mut watch = store.watch::<TrustBundleKind>().await?;
    let wanted = match abort {
        false => ask(store).await?,
        true => take_back(store).await?,
    };
    let mut follow = Follow::new(wanted);
    if global.wait != Some(false) {
        match tokio::time::timeout(global.timeout(), follow.run(&mut watch)).await {
            Ok(done) => done?,
            Err(_) => {
                if global.format().is_data() {
                    output::data(global.format(), &follow.view(false))?;
                }
                return Err(anyhow::Error::new(TimedOut(follow.late(global))));
            }
        }
    }
    follow.report(global)
}

/// What is waited for.
struct Wanted {
    /// The rotation before the one that was asked for.
    after: u64,
    /// The request that it answers.
    answers: u64,
    /// It is to end taken back.
    back: bool,
}

/// Raises the policy's number, unless a rotation goes on.
async fn ask(store: &AnyStore) -> anyhow::Result<Wanted> {
    for _ in 0..8 {
        let status = status(store).await?;
        let Some(mut policy) = store.get::<EncryptionPolicyKind>(CLUSTER).await? else {
            bail!("there is no policy yet: run `testudo init` first");
        };
        if status.phase != CaPhase::Settled {
            bail!(
                "rotation {} of the CA goes on: {}; follow it with `testudo ca show`, or take it back \
                 with `testudo ca rotate --abort`",
                status.rotation,
                progress(&status)
            );
        }
        let certificates = &mut policy.spec.certificates;
        let wanted = Wanted {
            after: status.rotation,
            answers: certificates
                .ca_rotation
                .max(status.answered.saturating_add(1)),
            back: false,
        };
        if certificates.ca_rotation > status.answered {
            eprintln!("a rotation was asked for already, and the controller has not begun it yet");
            return Ok(wanted);
        }
        certificates.ca_rotation = wanted.answers;
        // Of an earlier one: it is done with.
        policy.metadata.annotations.remove(TAKE_BACK_CA);
        match store.apply(policy).await {
            Ok(_) => return Ok(wanted),
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.into()),
        }
    }
    bail!("the policy is being changed by others all the time: try again")
}

/// Has the rotation that goes on taken back, if it still can be.
async fn take_back(store: &AnyStore) -> anyhow::Result<Wanted> {
    for _ in 0..8 {
        let status = status(store).await?;
        let Some(mut policy) = store.get::<EncryptionPolicyKind>(CLUSTER).await? else {
            bail!("there is no policy, and so no rotation to take back");
        };
        let other = status.other.as_deref().unwrap_or("the old CA");
        match status.phase {
            CaPhase::Settled => bail!("no rotation of the CA goes on"),
            CaPhase::Retiring if !status.taken_back => bail!(
                "it is too late: the key of {other} is gone; when this rotation is done, \
                 `testudo ca rotate` makes another CA"
            ),
            _ if !status.irrevocable.is_empty() => {
                bail!("it cannot be taken back: {}", status.irrevocable)
            }
            _ => {}
        }
        let wanted = Wanted {
            after: status.rotation.saturating_sub(1),
            answers: status.answered,
            back: true,
        };
        let number = status.rotation.to_string();
        let annotations = &mut policy.metadata.annotations;
        if annotations.insert(TAKE_BACK_CA.to_owned(), number.clone()) == Some(number) {
            return Ok(wanted);
        }
        match store.apply(policy).await {
            Ok(_) => return Ok(wanted),
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.into()),
        }
    }
    bail!("the policy is being changed by others all the time: try again")
}

async fn status(store: &AnyStore) -> anyhow::Result<TrustBundleStatus> {
    let Some(bundle) = store.get::<TrustBundleKind>(CLUSTER).await? else {
        bail!("there is no CA yet; the controller makes it at its first start");
    };
    Ok(bundle.status)
}

/// Phase and stragglers in one line.
pub(super) fn progress(status: &TrustBundleStatus) -> String {
    let mut text = status.phase.to_string();
    if let Some(since) = status.since {
        text += &format!(" since {since}");
    }
    if !status.waiting_on.is_empty() {
        text += &format!(", waits on {}", waiting(&status.waiting_on));
        if usize::try_from(status.waiting).is_ok_and(|all| all > status.waiting_on.len()) {
            text += &format!(" ({} nodes in all)", status.waiting);
        }
    }
    text
}

/// Follows the status of the bundle and says what happens.
struct Follow {
    wanted: Wanted,
    began: Instant,
    last: Option<TrustBundleStatus>,
    named: Vec<CaWaiting>,
    /// Nodes that have been waited for in this step and of which nobody has heard since that they have
    /// done their part.
    open: BTreeSet<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    rotation: u64,
    phase: CaPhase,
    done: bool,
    taken_back: bool,
    signer: &'a str,
    waiting_on: &'a [CaWaiting],
    seconds: f64,
}

impl Follow {
    fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            began: Instant::now(),
            last: None,
            named: Vec::new(),
            open: BTreeSet::new(),
        }
    }

    async fn run(&mut self, watch: &mut Watch<TrustBundleKind>) -> anyhow::Result<()> {
        while !self.is_done() {
            match tokio::time::timeout(STUCK, watch.next()).await {
                Ok(Some(Event::Added(bundle) | Event::Modified(bundle))) => self.see(bundle.status),
                Ok(Some(_)) => {}
                Ok(None) => bail!("the store has gone away"),
                Err(_) => self.stuck(),
            }
        }
        Ok(())
    }

    /// The status, once it speaks of the rotation that is meant.
    fn current(&self) -> Option<&TrustBundleStatus> {
        let last = self.last.as_ref()?;
        let meant = last.rotation > self.wanted.after && last.answered >= self.wanted.answers;
        meant.then_some(last)
    }

    fn is_done(&self) -> bool {
        let settled = |status: &TrustBundleStatus| status.phase == CaPhase::Settled;
        self.current().is_some_and(settled)
    }

    fn say(&self, text: &str) {
        let text = output::harmless(text);
        eprintln!("{:6.2} s  {text}", self.began.elapsed().as_secs_f64());
    }

    fn see(&mut self, status: TrustBundleStatus) {
        let before = self.last.replace(status.clone());
        if self.current().is_none() {
            if !status.message.is_empty() && before.is_some_and(|b| b.message != status.message) {
                self.say(&status.message);
            }
            return;
        }
        let before = before.filter(|b| b.rotation == status.rotation);
        match &before {
            Some(before) => {
                for line in self.finished(before, &status) {
                    self.say(&line);
                }
            }
            None => self.open.clear(),
        }
        if before.as_ref().map(|b| b.phase) != Some(status.phase) {
            let other = status.other.as_deref().unwrap_or_default();
            let signer = &status.signer;
            self.say(&match status.phase {
                CaPhase::Settled => format!("Settled: {signer} signs"),
                CaPhase::Trusting => format!("Trusting: {other} is made, {signer} signs"),
                CaPhase::Issuing => format!("Issuing: {signer} signs, {other} is still trusted"),
                CaPhase::Retiring => format!("Retiring: {other} is gone"),
            });
        }
        if before.is_some_and(|b| b.message != status.message) {
            self.say(&status.message);
        }
    }

    /// The nodes that have done their part of a step since `before`, a line each: who was waited for and
    /// is not any more, or the step was left, which takes all of them. A list that names some of those
    /// that are waited for says nothing of the others.
    fn finished(&mut self, before: &TrustBundleStatus, status: &TrustBundleStatus) -> Vec<String> {
        let waited = before.waiting_on.iter().map(|was| was.node.clone());
        self.open.extend(waited);
        let left = before.phase != status.phase;
        let named: BTreeSet<&str> = status.waiting_on.iter().map(|w| w.node.as_str()).collect();
        let is_cut = usize::try_from(status.waiting).is_ok_and(|all| all > named.len());
        if is_cut && !left {
            return Vec::new();
        }
        let gone = |node: &String| left || !named.contains(node.as_str());
        let nodes: Vec<String> = self.open.extract_if(.., gone).collect();
        // Taken back, it was left without them.
        if before.taken_back != status.taken_back {
            return Vec::new();
        }
        let other = before.other.as_deref().unwrap_or_default();
        let signer = &before.signer;
        let done = match before.phase {
            CaPhase::Settled => return Vec::new(),
            CaPhase::Trusting => format!("trusts {other}"),
            CaPhase::Issuing => format!("shows a certificate of {signer}, and so do its peers"),
            CaPhase::Retiring => format!("has ceased to trust {other}"),
        };
        let lines = nodes.iter().map(|node| format!("{node}: {done}"));
        lines.collect()
    }

    /// Nothing has happened for a while: who holds it, once.
    fn stuck(&mut self) {
        let Some(status) = self.current() else {
            if self.named.is_empty() {
                self.say("the controller has not begun yet: does it run?");
                self.named = vec![CaWaiting {
                    node: String::new(),
                    reason: String::new(),
                }];
            }
            return;
        };
        if !status.waiting_on.is_empty() && status.waiting_on != self.named {
            let named = status.waiting_on.clone();
            self.say(&format!("waits on {}", waiting(&named)));
            self.named = named;
        }
    }

    fn late(&self, global: &Global) -> String {
        let seconds = global.timeout().as_secs_f64();
        match self.current() {
            None => format!(
                "the controller has not begun after {seconds} s; does it run? It will when it does"
            ),
            Some(status) => format!(
                "not done after {seconds} s: {}; it goes on by itself, see `testudo ca show`",
                progress(status)
            ),
        }
    }

    fn view(&self, done: bool) -> View<'_> {
        let status = self.last.as_ref();
        let seconds = self.began.elapsed().as_secs_f64();
        View {
            rotation: status.map_or(0, |s| s.rotation),
            phase: status.map_or(CaPhase::Settled, |s| s.phase),
            done,
            taken_back: status.is_some_and(|s| s.taken_back),
            signer: status.map_or("", |s| &s.signer),
            waiting_on: status.map_or(&[], |s| &s.waiting_on),
            seconds: (seconds * 1000.0).round() / 1000.0,
        }
    }

    fn report(&self, global: &Global) -> Outcome {
        let done = self.is_done();
        let view = self.view(done);
        match (global.format().is_data(), done) {
            (true, _) => output::data(global.format(), &view)?,
            (false, false) if self.wanted.back => output::line("the rotation is to be taken back")?,
            (false, false) => output::line("a rotation of the CA is asked for")?,
            (false, true) => {
                let what = match view.taken_back {
                    true => "rotation taken back",
                    false => "CA rotated",
                };
                output::line(&format!(
                    "{what}: {} signs, {:.2} s",
                    view.signer, view.seconds
                ))?;
            }
        }
        match done && view.taken_back != self.wanted.back {
            true if self.wanted.back => {
                eprintln!("testudo: it was too late to take it back");
                Err(anyhow::Error::new(CheckFailed))
            }
            true => {
                eprintln!("testudo: somebody took it back meanwhile");
                Err(anyhow::Error::new(CheckFailed))
            }
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: CaPhase, rotation: u64, answered: u64) -> TrustBundleStatus {
        TrustBundleStatus {
            phase,
            rotation,
            answered,
            ..TrustBundleStatus::default()
        }
    }

    #[test]
    fn a_rotation_is_done_when_the_one_that_was_asked_for_is() {
        let mut follow = Follow::new(Wanted {
            after: 4,
            answers: 2,
            back: false,
        });
        for (status, done) in [
            (status(CaPhase::Settled, 4, 1), false),
            // Begun by itself a moment before: not ours.
            (status(CaPhase::Settled, 5, 1), false),
            (status(CaPhase::Trusting, 6, 2), false),
            (status(CaPhase::Settled, 6, 2), true),
        ] {
            follow.see(status);
            assert_eq!(follow.is_done(), done);
        }
    }

    /// The controller names the first of many: who is not named may be waited for all the same.
    #[test]
    fn a_node_is_done_only_when_the_list_is_whole() {
        let mut follow = Follow::new(Wanted {
            after: 0,
            answers: 1,
            back: false,
        });
        let waits = |named: &[&str], all: u64| {
            let waiting = named.iter().map(|node| CaWaiting {
                node: (*node).to_owned(),
                reason: String::new(),
            });
            TrustBundleStatus {
                waiting: all,
                waiting_on: waiting.collect(),
                other: Some("B".to_owned()),
                ..status(CaPhase::Trusting, 1, 1)
            }
        };
        let cut = [waits(&["n1", "n2"], 5), waits(&["n2", "n3"], 4)];
        assert_eq!(follow.finished(&cut[0], &cut[1]), [""; 0]);
        let whole = waits(&["n3", "n4"], 2);
        let done = follow.finished(&cut[1], &whole);
        assert_eq!(done, ["n1: trusts B", "n2: trusts B"]);
        let issuing = status(CaPhase::Issuing, 1, 1);
        let done = follow.finished(&whole, &issuing);
        assert_eq!(done, ["n3: trusts B", "n4: trusts B"]);
        // Who was named once and was not again had to do it before the step was left.
        let begun = waits(&["n1"], 3);
        follow.finished(&begun, &waits(&["n2"], 3));
        let done = follow.finished(&waits(&["n2"], 3), &issuing);
        assert_eq!(done, ["n1: trusts B", "n2: trusts B"]);
    }

    #[test]
    fn stragglers_are_named_with_what_they_lack() {
        let mut status = status(CaPhase::Trusting, 1, 1);
        assert_eq!(progress(&status), "Trusting");
        status.waiting_on = (1..=7)
            .map(|n| CaWaiting {
                node: format!("n{n}"),
                reason: "does not trust X yet".to_owned(),
            })
            .collect();
        let text = progress(&status);
        assert!(text.contains("n1 (does not trust X yet), n2"), "{text}");
        assert!(text.ends_with("and 2 more"), "{text}");
        status.waiting = 900;
        assert!(progress(&status).ends_with("(900 nodes in all)"));
    }
}
