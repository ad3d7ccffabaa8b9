//! The kernels: Debian's packages, fetched by an apt of its own and unpacked, not installed.
//!
//! They are kept outside the tree, under the user's cache folder, because they outlive a build.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::process::output;
use crate::packages;

/// The release of Debian that has the oldest kernel that Testudo supports.
const FLOOR: &str = "bookworm";

/// The release that has the newest.
const NEWEST: &str = "unstable";

/// Programs of the machine that both kinds need, and the packages that have them.
const NEEDED: [(&str, &str); 2] = [("modprobe", "kmod"), ("setpriv", "util-linux")];

/// What Debian's kernels have that no guest has a use for, a third of a gigabyte.
const UNUSED: [&str; 4] = [
    "sound",
    "drivers/gpu",
    "drivers/media",
    "drivers/net/wireless",
];

/// Loaded before the machine's files can be seen.
const EARLY_UML: [&str; 1] = ["overlay"];
const EARLY_QEMU: [&str; 5] = ["virtio_pci", "virtio_rng", "9pnet_virtio", "9p", "overlay"];

/// A kernel that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// user-mode-linux of Debian unstable.
    Uml,
    /// The kernel of a release of Debian, in QEMU.
    Of {
        /// What it is called on the command line.
        name: String,
        /// Debian's name of the release.
        release: String,
    },
}

impl Kernel {
    /// By its name on the command line: `uml`, `6.1`, `newest` or a release of Debian.
    pub(crate) fn named(name: &str) -> anyhow::Result<Self> {
        let release = match name {
            "uml" => return Ok(Self::Uml),
            "6.1" => FLOOR,
            "newest" => NEWEST,
            _ if !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase()) => name,
            _ => bail!("no kernel {name}: uml, 6.1, newest, or a release of Debian"),
        };
        Ok(Self::Of {
            name: name.to_owned(),
            release: release.to_owned(),
        })
    }

    /// The newest, in QEMU.
    pub(crate) fn newest() -> Self {
        Self::Of {
            name: "newest".into(),
            release: NEWEST.into(),
        }
    }

    /// Its name on the command line.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Uml => "uml",
            Self::Of { name, .. } => name,
        }
    }

    fn release(&self) -> &str {
        match self {
            Self::Uml => NEWEST,
            Self::Of { release, .. } => release,
        }
    }
}

/// A kernel that is ready to start.
pub(super) struct Unpacked {
    /// user-mode-linux, or the image that QEMU starts.
    pub(super) image: PathBuf,
    /// A busybox that needs no library.
    pub(super) busybox: PathBuf,
    /// The modules to load before the machine's files can be seen, in order.
    pub(super) early: Vec<PathBuf>,
    /// The modules, to be found at `/lib/modules/RELEASE` in the guest.
    pub(super) modules: PathBuf,
}

/// Fetches it unless it is there; `again` fetches it in any case.
pub(super) fn ensure(kernel: &Kernel, again: bool) -> anyhow::Result<Unpacked> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "guests are made for x86_64 machines, this one is {}",
            std::env::consts::ARCH
        );
    }
    packages::ensure_these(&NEEDED)?;
    packages::ensure_these(match kernel {
        Kernel::Uml => &[("patchelf", "patchelf")],
        Kernel::Of { .. } => &[
            ("qemu-system-x86_64", "qemu-system-x86"),
            ("xz", "xz-utils"),
        ],
    })?;
    let cache = folder()?;
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    // Two that start at once must not unpack over each other.
    let lock = std::fs::File::create(cache.join("lock"))?;
    lock.lock().context("the lock of the kernels' folder")?;
    let place = cache.join(kernel.name());
    if again || !place.is_dir() {
        let what = format!("{} ({})", kernel.name(), kernel.release());
        fetch_patiently(kernel, &cache, &place).with_context(|| {
            format!(
                "no kernel {what} in {}, and it could not be fetched",
                cache.display()
            )
        })?;
    }
    let modules = only_child(&place.join("lib/modules"))?;
    Ok(Unpacked {
        image: place.join("linux"),
        busybox: place.join("busybox"),
        early: early_modules(kernel, &place, &modules)?,
        modules,
    })
}

/// Where kernels are kept.
fn folder() -> anyhow::Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|cache| cache.join("testudo/guest"))
        .context("neither XDG_CACHE_HOME nor HOME is set")
}

/// A mirror that is busy for a moment should not fail a whole run.
fn fetch_patiently(kernel: &Kernel, cache: &Path, place: &Path) -> anyhow::Result<()> {
    let mut attempt = 1;
    loop {
        match fetch(kernel, cache, place) {
            Err(error) if attempt < 3 => {
                eprintln!("    guest: attempt {attempt} of 3: {error:#}");
                std::thread::sleep(Duration::from_secs(5 * attempt));
                attempt += 1;
            }
            done => return done,
        }
    }
}

fn fetch(kernel: &Kernel, cache: &Path, place: &Path) -> anyhow::Result<()> {
    let start = Instant::now();
    let release = kernel.release();
    eprintln!(
        "==> guest: fetching the kernel {} from Debian {release}",
        kernel.name()
    );
    let settings = packages::own_apt(&cache.join(format!("apt-{release}")), release)?;
    let fresh = cache.join(format!("{}.new", kernel.name()));
    // What an aborted attempt left is not taken for whole.
    remove(&fresh)?;
    let (archives, root) = (fresh.join("archives"), fresh.join("root"));
    std::fs::create_dir_all(&archives)?;
    let mut names = vec!["busybox-static".to_owned()];
    match kernel {
        Kernel::Uml => names.extend(["user-mode-linux", "libc6"].map(str::to_owned)),
        Kernel::Of { .. } => names.extend(image_packages(&settings)?),
    }
    output(
        Command::new("apt-get")
            .args(["download", "-q"])
            .args(&names)
            .env("APT_CONFIG", &settings)
            .current_dir(&archives),
    )?;
    for archive in children(&archives)? {
        output(Command::new("dpkg").arg("-x").arg(archive).arg(&root))?;
    }
    match kernel {
        Kernel::Uml => arrange_uml(&root, &fresh, place)?,
        Kernel::Of { .. } => arrange_image(&root, &fresh)?,
    }
    std::fs::rename(
        first_of(&root, &["usr/bin/busybox", "bin/busybox"])?,
        fresh.join("busybox"),
    )?;
    remove(&archives)?;
    remove(&root)?;
    remove(place)?;
    std::fs::rename(&fresh, place).with_context(|| place.display().to_string())?;
    eprintln!("    guest: {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// The packages of a release's current kernel: in newer releases image and modules are apart.
fn image_packages(settings: &Path) -> anyhow::Result<Vec<String>> {
    let depends = |package: &str| -> anyhow::Result<Vec<String>> {
        let text = output(
            Command::new("apt-cache")
                .args(["depends", "--important", package])
                .env("APT_CONFIG", settings),
        )?;
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    };
    let image = depends("linux-image-amd64")?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .context("linux-image-amd64 depends on no image")?;
    let version = image.trim_start_matches("linux-image-").to_owned();
    let mut names: Vec<String> = depends(&image)?
        .into_iter()
        .filter(|name| name.starts_with("linux-") && name.ends_with(&version))
        .collect();
    names.push(image);
    Ok(names)
}

/// user-mode-linux wants the C library of its own release, and finds it by its own path.
fn arrange_uml(root: &Path, fresh: &Path, place: &Path) -> anyhow::Result<()> {
    let library = first_of(root, &["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"])?;
    std::fs::rename(library, fresh.join("libc"))?;
    std::fs::create_dir_all(fresh.join("lib"))?;
    std::fs::rename(root.join("usr/lib/uml/modules"), fresh.join("lib/modules"))
        .context("user-mode-linux's modules")?;
    let program = fresh.join("linux");
    std::fs::rename(
        first_of(root, &["usr/bin/linux.uml", "usr/bin/linux"])?,
        &program,
    )?;
    let libc = place.join("libc");
    output(
        Command::new("patchelf")
            .arg("--set-interpreter")
            .arg(libc.join("ld-linux-x86-64.so.2"))
            .arg("--set-rpath")
            .arg(libc)
            .arg(program),
    )?;
    Ok(())
}

/// One folder of modules, not compressed: an emulated processor is slow at it.
fn arrange_image(root: &Path, fresh: &Path) -> anyhow::Result<()> {
    let modules = first_of(root, &["usr/lib/modules", "lib/modules"])?;
    std::fs::create_dir_all(fresh.join("lib"))?;
    std::fs::rename(modules, fresh.join("lib/modules"))?;
    let modules = only_child(&fresh.join("lib/modules"))?;
    let version = modules.file_name().context("the modules' version")?;
    let mut in_boot = std::ffi::OsString::from("vmlinuz-");
    in_boot.push(version);
    let image = [modules.join("vmlinuz"), root.join("boot").join(in_boot)];
    let image = image.iter().find(|path| path.is_file());
    std::fs::rename(
        image.context("a package without a kernel")?,
        fresh.join("linux"),
    )?;
    for unused in UNUSED {
        remove(&modules.join("kernel").join(unused))?;
    }
    let compressed = "find \"$1\" -name '*.ko.xz' -print0 | xargs -0 -r -n 100 -P 2 xz -d";
    output(
        Command::new("sh")
            .args(["-c", compressed, "sh"])
            .arg(&modules),
    )?;
    output(Command::new("depmod").arg("-b").arg(fresh).arg(version))?;
    Ok(())
}

fn early_modules(kernel: &Kernel, place: &Path, modules: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let early: &[&str] = match kernel {
        Kernel::Uml => &EARLY_UML,
        Kernel::Of { .. } => &EARLY_QEMU,
    };
    let version = modules.file_name().context("the modules' version")?;
    let mut found: Vec<PathBuf> = Vec::new();
    for name in early {
        let text = output(
            Command::new("modprobe")
                .arg("--dirname")
                .arg(place)
                .arg("--set-version")
                .arg(version)
                .args(["--show-depends", name]),
        )?;
        // "insmod PATH", in the order that it takes, or "builtin NAME".
        for line in text.lines() {
            let Some(path) = line.strip_prefix("insmod ") else {
                continue;
            };
            let path = PathBuf::from(path.trim());
            if !found.contains(&path) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn first_of(root: &Path, names: &[&str]) -> anyhow::Result<PathBuf> {
    let paths = names.iter().map(|name| root.join(name));
    paths
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("Debian moved {}", names.join(", ")))
}

fn children(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths)
}

fn only_child(folder: &Path) -> anyhow::Result<PathBuf> {
    match children(folder)?.as_slice() {
        [path] => Ok(path.clone()),
        other => bail!("{}: {} entries, not one", folder.display(), other.len()),
    }
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| folder.display().to_string())
        }
        _ => Ok(()),
    }
}
