//! What an API server's refusal means, told so that a person can mend it.

use std::path::PathBuf;

use kube::core::Status;
use testudo_model::Kind;
use testudo_store::{Problem, StoreError};

use crate::link::resource;

/// An object in the place where a directory store names a file.
pub(crate) fn problem<K: Kind>(name: &str, reason: impl Into<String>) -> Problem {
    let resource = resource::<K>();
    let file = format!("{}.{}/{name}", resource.plural, resource.group);
    Problem {
        file: PathBuf::from(file),
        name: Some(name.to_owned()),
        line: 0,
        column: 0,
        reason: reason.into(),
    }
}

const UNDECLARED: &str = "field not declared in schema";

/// Whether an apply has a field that the API server's schema does not have.
pub(crate) fn is_undeclared(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.message.contains(UNDECLARED))
}

/// Turns what a call brought home into an error of the store's.
pub(crate) fn refused<K: Kind>(server: &str, name: &str, error: kube::Error) -> StoreError {
    let kube::Error::Api(status) = error else {
        return away(server, &error);
    };
    let (kind, name) = (K::KIND, name.to_owned());
    match (status.code, status.reason.as_str()) {
        (404, _) if is_about_an_object(&status) => StoreError::NotFound { kind, name },
        (404, _) => StoreError::Unavailable {
            what: format!(
                "{server} knows no {}.{}",
                resource::<K>().plural,
                resource::<K>().group
            ),
            remedy: "install the CRDs: testudo crds | kubectl apply --server-side -f -".to_owned(),
        },
        (409, "AlreadyExists") => StoreError::AlreadyExists { kind, name },
        (409, _) => match owner(&status) {
            Some((fields, owner)) => StoreError::Owned {
                kind,
                name,
                fields,
                owner,
            },
            None => StoreError::Conflict { kind, name },
        },
        (400 | 422, _) => StoreError::Invalid(problem::<K>(&name, status.message)),
        // An apply of a field that the schema does not have fails before it is looked at.
        (500, _) if status.message.contains(UNDECLARED) => {
            StoreError::Invalid(problem::<K>(&name, status.message))
        }
        (401, _) => StoreError::Unavailable {
            what: format!("{server} does not know who we are: {}", status.message),
            remedy: "see to the credentials of the kubeconfig or the service account".to_owned(),
        },
        (403, _) => StoreError::Unavailable {
            what: format!("{server} forbids it: {}", status.message),
            remedy: "see the roles in docs/kubernetes.md".to_owned(),
        },
        (code, _) => StoreError::Unavailable {
            what: format!("{server} answered {code}: {}", status.message),
            remedy: "it is tried again".to_owned(),
        },
    }
}

/// The API server was not heard, or not understood.
pub(crate) fn away(server: &str, error: &kube::Error) -> StoreError {
    StoreError::Unavailable {
        what: format!("{server} cannot be reached: {}", cause(error)),
        remedy: "see that it runs and that this host has a way to it".to_owned(),
    }
}

/// Whether the version that a list or watch began at is no longer known.
pub(crate) fn is_too_old(status: &Status) -> bool {
    status.code == 410 || matches!(status.reason.as_str(), "Expired" | "Gone")
}

/// A missing object is named in the answer; of a missing kind the answer says nothing.
fn is_about_an_object(status: &Status) -> bool {
    status
        .details
        .as_ref()
        .is_some_and(|details| !details.name.is_empty())
}

/// The fields of a server-side apply that others keep, and who.
fn owner(status: &Status) -> Option<(String, String)> {
    let causes = &status.details.as_ref()?.causes;
    let kept = causes
        .iter()
        .filter(|cause| cause.reason == "FieldManagerConflict");
    let fields: Vec<&str> = kept
        .clone()
        .map(|cause| cause.field.trim_start_matches('.'))
        .collect();
    // conflict with "helm" using testudo.dev/v1alpha1
    let owner = kept.clone().next()?.message.split('"').nth(1)?.to_owned();
    let verb = if fields.len() == 1 { "is" } else { "are" };
    Some((format!("{} {verb}", fields.join(", ")), owner))
}

/// What went wrong on the way, without the name that the client gives to it.
fn cause(error: &kube::Error) -> String {
    match error {
        kube::Error::Service(inner) => chain(&**inner),
        error => chain(error),
    }
}

/// An error with all that caused it, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
