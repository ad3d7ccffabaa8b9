//! Writes the seeds of each target into the corpus: `cargo run -p testudo-fuzz --example seeds`.

use std::path::Path;

use testudo_fuzz::{TARGETS, seeds};

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for target in &TARGETS {
        let folder = corpus.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (name, data) in seeds::of(target.name) {
            std::fs::write(folder.join(name), data)?;
        }
    }
    Ok(())
}
