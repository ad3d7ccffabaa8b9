//! The layout's rules, checked on the tree itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::{guest, lessons, run};

/// Crates that know no socket, no clock and no runtime.
const PURE: [&str; 9] = [
    "wire", "crypto", "model", "ike", "esp", "pki", "plan", "datapath", "sim",
];

/// Which crates of ours each crate may use. Dependencies point down.
const TABLE: [(&str, &[&str]); 24] = [
    ("wire", &[]),
    ("crypto", &[]),
    ("model", &["crypto"]),
    ("esp", &["wire", "crypto"]),
    ("ike", &["wire", "crypto", "model"]),
    ("pki", &["crypto", "model"]),
    ("plan", &["model"]),
    ("netlink", &[]),
    ("metrics", &[]),
    ("datapath", &["model", "crypto"]),
    (
        "datapath-user",
        &["model", "crypto", "wire", "esp", "netlink", "datapath"],
    ),
    ("datapath-kernel", &["model", "netlink", "datapath"]),
    ("store", &["model", "crypto"]),
    ("store-kube", &["model", "crypto", "store"]),
    (
        "agent",
        &[
            "model",
            "crypto",
            "wire",
            "ike",
            "metrics",
            "pki",
            "plan",
            "datapath",
            "datapath-kernel",
            "datapath-user",
            "netlink",
            "store",
            "store-kube",
        ],
    ),
    (
        "controller",
        &[
            "model",
            "crypto",
            "pki",
            "plan",
            "store",
            "store-kube",
            "metrics",
        ],
    ),
    ("lab", &["model", "netlink", "store", "store-kube"]),
    ("kube-env", &["netlink"]),
    (
        "interop",
        &[
            "crypto",
            "datapath",
            "datapath-kernel",
            "esp",
            "ike",
            "model",
            "netlink",
            "pki",
            "wire",
        ],
    ),
    (
        "testudo",
        &[
            "model",
            "crypto",
            "pki",
            "plan",
            "store",
            "store-kube",
            "agent",
            "controller",
            "lab",
            "netlink",
            "wire",
            "datapath-kernel",
            "datapath-user",
        ],
    ),
    ("sim", &["crypto", "esp", "ike", "model"]),
    ("fuzz", &["crypto", "esp", "ike", "model", "pki", "wire"]),
    (
        "bench",
        &[
            "crypto",
            "datapath",
            "datapath-kernel",
            "ike",
            "interop",
            "kube-env",
            "lab",
            "model",
            "pki",
            "store",
            "store-kube",
        ],
    ),
    ("xtask", &["interop"]),
];

const LONGEST_FILE: usize = 800;

/// Checks all rules and reports every breach.
pub(crate) fn check() -> anyhow::Result<()> {
    let root = run::root();
    let mut breaches = Vec::new();
    let known: BTreeSet<&str> = TABLE.iter().map(|(name, _)| *name).collect();
    for entry in std::fs::read_dir(root.join("crates"))? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if !known.contains(name.as_str()) {
            breaches.push(format!(
                "crates/{name}: not in the table of crates (crates/xtask/src/house.rs)"
            ));
        }
    }
    for (name, allowed) in TABLE {
        dependencies(&root, name, allowed, &mut breaches)?;
    }
    for file in sources(&root.join("crates"))? {
        source(&root, &file, &mut breaches)?;
    }
    for name in PURE {
        let library = root.join("crates").join(name).join("src/lib.rs");
        if library.exists()
            && !std::fs::read_to_string(&library)?.contains("#![forbid(unsafe_code)]")
        {
            breaches.push(format!("crates/{name}: a pure crate forbids unsafe code"));
        }
    }
    lessons::check(&root, &mut breaches)?;
    if let Err(error) = guest::targets::all() {
        breaches.push(format!("{error:#}"));
    }
    if !breaches.is_empty() {
        bail!(
            "the layout's rules are broken:\n  {}",
            breaches.join("\n  ")
        );
    }
    eprintln!("==> house: {} crates as the table has them", TABLE.len());
    Ok(())
}

fn dependencies(
    root: &Path,
    name: &str,
    allowed: &[&str],
    breaches: &mut Vec<String>,
) -> anyhow::Result<()> {
    let file = root.join("crates").join(name).join("Cargo.toml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let normal = text.split("[dev-dependencies]").next().unwrap_or_default();
    for line in normal.lines() {
        let Some(dependency) = line.strip_prefix("testudo-") else {
            continue;
        };
        let dependency = dependency.split(['.', ' ', '=']).next().unwrap_or_default();
        if !allowed.contains(&dependency) {
            breaches.push(format!(
                "crates/{name}: depends on {dependency}, which the table does not allow"
            ));
        }
    }
    Ok(())
}

fn source(root: &Path, file: &Path, breaches: &mut Vec<String>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let shown = file.strip_prefix(root).unwrap_or(file).display();
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        breaches.push(format!(
            "{shown}: {lines} lines; split it by meaning (at most {LONGEST_FILE})"
        ));
    }
    // Spelt in two parts, so that this file does not name itself.
    if text.contains(concat!("#[", "ignore")) {
        breaches.push(format!("{shown}: an ignored test is a test nobody runs"));
    }
    Ok(())
}

fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
