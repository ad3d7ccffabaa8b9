//! Core dumps, which would hold keys.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Turns core dumps off for this process and those that it starts: one that crashes must not write its
/// keys to a disk. A limit of 0 bytes holds for files alone; with 1, too little for any file, Linux
/// pipes none to a program either.
///
/// # Errors
/// The limit cannot be set.
pub fn no_core_dumps() -> std::io::Result<()> {
    let none = Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    Ok(setrlimit(Resource::Core, none)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_files_nor_pipes_get_a_dump() {
        no_core_dumps().unwrap();
        let now = rustix::process::getrlimit(Resource::Core);
        assert_eq!((now.current, now.maximum), (Some(1), Some(1)));
        no_core_dumps().unwrap();
    }
}
