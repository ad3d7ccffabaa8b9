//! A node asks for certificates, and the controller answers.

use testudo_model::request::CertificateRequestKind;
use testudo_model::{
    CertificateRequest, CertificateRequestSpec, CertificateRequestStatus, NodeName, NodeUid,
};

use super::{PATIENCE, said};
use crate::requester::Requester;
use crate::store::{Change, Store};
use crate::watch::{Event, Watch};

/// What [`run`] asks with and answers.
pub struct Case<'a> {
    /// The node; its store may write for it.
    pub node: &'a str,
    /// Two requests, PKCS#10 in PEM.
    pub requests: [&'a str; 2],
    /// The answer to the second, a certificate in PEM.
    pub certificate: &'a str,
}

/// Puts two handles of one store to the test, the node's and the controller's; the error says what
/// went wrong. There must be no requests before, and there are none afterwards.
pub async fn run<N: Store, C: Store>(
    node: &N,
    controller: &C,
    case: &Case<'_>,
) -> Result<(), String> {
    let mut asked = Follower::start(controller, case.node).await?;
    let mut answered = Follower::start(node, case.node).await?;
    let first = ask(node, case, 0).await?;
    let pending = asked
        .until("the first request", |r| r.spec == first)
        .await?;
    check!(
        pending.status == CertificateRequestStatus::default(),
        "a new request has a status: {:?}",
        pending.status
    );
    vouched(controller, &pending, case.node).await?;
    answer(controller, pending, |status| {
        status.denied = Some("for a test".to_owned());
    })
    .await?;
    let told = answered
        .until("a denial", |r| {
            r.spec == first && r.status.answers.is_some()
        })
        .await?;
    check!(
        told.status.denied.as_deref() == Some("for a test") && told.status.certificate.is_none(),
        "a denial came as {:?}",
        told.status
    );

    let second = ask(node, case, 1).await?;
    let pending = asked
        .until("the next request", |r| r.spec == second)
        .await?;
    check!(
        pending.status.answers.as_ref() != Some(&second.proof),
        "the denial answers the next request too"
    );
    vouched(controller, &pending, case.node).await?;
    answer(controller, pending, |status| {
        status.certificate = Some(case.certificate.to_owned());
    })
    .await?;
    let told = answered
        .until("a certificate", |r| {
            r.spec == second && r.status.answers.as_ref() == Some(&second.proof)
        })
        .await?;
    check!(
        told.status.certificate.as_deref().map(str::trim) == Some(case.certificate.trim()),
        "a certificate came as {:?}",
        told.status
    );
    let again = node.apply(CertificateRequest::new(case.node, second)).await;
    let change = again.map_err(said)?.change;
    check!(change == Change::Unchanged, "asked again: {change:?}");
    let gone = controller.delete::<CertificateRequestKind>(case.node).await;
    check!(gone.map_err(said)?, "the request was not there");
    let left = controller.list::<CertificateRequestKind>().await;
    let left = left.map_err(said)?.items;
    check!(left.is_empty(), "after the deletion: {left:?}");
    Ok(())
}

async fn ask<N: Store>(
    node: &N,
    case: &Case<'_>,
    number: usize,
) -> Result<CertificateRequestSpec, String> {
    let name = |e: testudo_model::name::NameError| e.to_string();
    let spec = CertificateRequestSpec {
        node: NodeName::new(case.node).map_err(name)?,
        uid: NodeUid::new("uid").map_err(name)?,
        request: case.requests[number].to_owned(),
        proof: format!("0{number}"),
    };
    let request = CertificateRequest::new(case.node, spec.clone());
    node.apply(request).await.map_err(said)?;
    Ok(spec)
}

async fn vouched<C: Store>(
    controller: &C,
    request: &CertificateRequest,
    node: &str,
) -> Result<(), String> {
    match controller.requester(request).await.map_err(said)? {
        Requester::HolderOf(Some(_)) => Ok(()),
        Requester::HolderOf(None) => Err(format!("{node} has no token")),
        Requester::Authenticated(writer) => {
            check!(writer.nodes == [node], "the writer: {writer:?}");
            Ok(())
        }
    }
}

async fn answer<C: Store>(
    controller: &C,
    mut request: CertificateRequest,
    change: impl FnOnce(&mut CertificateRequestStatus),
) -> Result<(), String> {
    request.status = CertificateRequestStatus {
        answers: Some(request.spec.proof.clone()),
        ..CertificateRequestStatus::default()
    };
    change(&mut request.status);
    let written = controller.update_status(&request).await.map_err(said)?;
    check!(
        written.status.answers == request.status.answers,
        "an answer was written as {:?}",
        written.status
    );
    Ok(())
}

/// A watch of one node's request.
struct Follower {
    watch: Watch<CertificateRequestKind>,
    node: String,
}

impl Follower {
    async fn start<S: Store>(store: &S, node: &str) -> Result<Follower, String> {
        Ok(Follower {
            watch: store.watch().await.map_err(said)?,
            node: node.to_owned(),
        })
    }

    async fn until(
        &mut self,
        what: &str,
        wanted: impl Fn(&CertificateRequest) -> bool,
    ) -> Result<CertificateRequest, String> {
        let heard = async {
            while let Some(event) = self.watch.next().await {
                match event {
                    Event::Added(request) | Event::Modified(request)
                        if request.name() == self.node && wanted(&request) =>
                    {
                        return Some(request);
                    }
                    _ => {}
                }
            }
            None
        };
        match tokio::time::timeout(PATIENCE, heard).await {
            Ok(Some(request)) => Ok(request),
            Ok(None) => Err("the watch ended".to_owned()),
            Err(_) => Err(format!("{what} was not told")),
        }
    }
}
