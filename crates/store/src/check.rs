//! What every store refuses before it looks at what it holds.

use testudo_model::{API_VERSION, Kind, Object, PeerId};

/// Names of objects are DNS names: they become names of files and parts of URLs.
pub fn check_name(name: &str) -> Result<(), String> {
    PeerId::new(name)
        .map(|_| ())
        .map_err(|e| format!("\"{}\": {}", e.text, e.reason))
}

/// Version, kind and the kind's own rules.
pub fn check_object<K: Kind>(object: &Object<K>) -> Result<(), String> {
    if object.api_version != API_VERSION {
        return Err(format!(
            "apiVersion \"{}\" is not {API_VERSION}",
            object.api_version
        ));
    }
    if object.kind != K::KIND {
        return Err(format!("kind \"{}\" is not {}", object.kind, K::KIND));
    }
    K::validate(object.name(), &object.spec)
}
