//! `testudo-kube`: what `cargo xtask kube` runs.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use testudo_kube_env::programs::{self, CONTROL_PLANE, HELM_CLIENT, NODES};
use testudo_kube_env::{Between, Cluster, Component, NewNode, Options, down, names, sweep};
use testudo_kube_env::{chart, image, operator};

const HELP: &str = "\
cargo xtask kube COMMAND [--name NAME]

  up [--nodes N] [--routed]
                    a control plane: etcd, API server, controller manager; with nodes a scheduler,
                    and N kubelets with containerd and pods on a VXLAN overlay, or by routes alone.
                    The programs are built the first time. NAME is `dev` if it is not said
  exec NODE -- COMMAND ARGS...
                    a command in a node (1, 2, ...), as root there
  load ARCHIVE      an image, in the OCI's layout, into every node
  node add [--taint KEY=VALUE:EFFECT] [ARCHIVE...]
                    one more node, registered with a taint, with these images from its start
  node delete NODE  a node (1, 2, ...) for good: its object, its processes, the ways to it
  stop COMPONENT    an outage: etcd, kube-apiserver, kube-controller-manager or kube-scheduler ends
  start COMPONENT   and is there again
  env               exports for a shell: eval \"$(cargo xtask kube env)\"
  status            what runs, its memory, where its logs are; without --name of all
  down [--all | --orphans]
                    end one, all, or those of tests that were killed
  image PROGRAM NAME:TAG ARCHIVE
                    the container image of a built testudo
  chart PROGRAM FOLDER
                    the Helm chart and plain manifests, with the CRDs of a built testudo
  build [--all]     build what clusters need, with --all what tests need beyond, and start nothing
";

/// The name of the cluster that a person gets without a name.
const DEFAULT: &str = "dev";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (command, rest) = match words.split_first() {
        None | Some((&("help" | "-h" | "--help"), _)) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some((command, rest)) => (*command, rest),
    };
    let done = match command {
        "up" => parse(rest, &["--routed"]).map(up),
        "exec" => parse(rest, &[]).map(execute),
        "load" => parse(rest, &[]).map(load),
        "node" => parse(rest, &[]).map(node),
        "stop" => parse(rest, &[]).map(|arguments| component(&arguments, false)),
        "start" => parse(rest, &[]).map(|arguments| component(&arguments, true)),
        "env" => parse(rest, &[]).map(environment),
        "status" => parse(rest, &[]).map(status),
        "down" => parse(rest, &["--all", "--orphans"]).map(end),
        "build" => parse(rest, &["--all"]).map(build),
        "image" => parse(rest, &[]).map(make_image),
        "chart" => parse(rest, &[]).map(make_chart),
        other => Err(anyhow::anyhow!("unknown: cargo xtask kube {other}")),
    };
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("error: {error:#}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

/// What stands behind a command.
struct Arguments<'a> {
    name: Option<&'a str>,
    nodes: u8,
    taint: Option<&'a str>,
    /// What is no option, and all that stands behind `--`.
    words: Vec<&'a str>,
    flags: Vec<&'a str>,
}

impl<'a> Arguments<'a> {
    fn name(&self) -> &'a str {
        self.name.unwrap_or(DEFAULT)
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }
}

fn parse<'a>(words: &[&'a str], flags: &[&str]) -> Result<Arguments<'a>> {
    let mut arguments = Arguments {
        name: None,
        nodes: 0,
        taint: None,
        words: Vec::new(),
        flags: Vec::new(),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--name" => arguments.name = Some(words.next().context("--name wants a name")?),
            "--nodes" => {
                let count = words.next().context("--nodes wants a number")?;
                arguments.nodes = count.parse().with_context(|| format!("--nodes {count}"))?;
            }
            "--taint" => arguments.taint = Some(words.next().context("--taint wants a taint")?),
            "--" => {
                arguments.words.extend(words);
                break;
            }
            word if flags.contains(&word) => arguments.flags.push(word),
            word if word.starts_with('-') => bail!("unknown argument {word}"),
            word => arguments.words.push(word),
        }
    }
    Ok(arguments)
}

fn say(line: &str) {
    eprintln!("==> kube: {line}");
}

fn up(arguments: Arguments<'_>) -> Result<()> {
    let start = Instant::now();
    let mut wanted = CONTROL_PLANE.to_vec();
    if arguments.nodes > 0 {
        wanted.extend(NODES);
    }
    programs::ensure(&wanted, &say)?;
    let built = start.elapsed();
    let name = arguments.name();
    let cluster = Cluster::up(
        &Options {
            name: name.to_owned(),
            nodes: arguments.nodes,
            between: match arguments.has("--routed") {
                true => Between::Routes,
                false => Between::Vxlan,
            },
            stays: true,
        },
        &say,
    )?;
    let program = std::env::current_exe().context("the running program's path")?;
    // Built beside this one.
    cluster.link_program("kubectl-testudo", &program.with_file_name("testudo"))?;
    say(&format!(
        "up in {:.1} s; eval \"$(cargo xtask kube env --name {name})\"",
        (start.elapsed() - built).as_secs_f32()
    ));
    // The cluster does not need it, and is there while it is built.
    programs::ensure(&[&HELM_CLIENT], &say)
}

fn execute(arguments: Arguments<'_>) -> Result<()> {
    let [node, command @ ..] = &arguments.words[..] else {
        bail!("exec wants a node and a command");
    };
    let number = node.parse().with_context(|| format!("node {node}"))?;
    let cluster = Cluster::open(arguments.name())?;
    let error = cluster.node_command(number)?.args(command).exec();
    Err(error).context("nsenter could not be started")
}

fn load(arguments: Arguments<'_>) -> Result<()> {
    let [archive] = &arguments.words[..] else {
        bail!("load wants one archive");
    };
    let cluster = Cluster::open(arguments.name())?;
    for number in cluster.nodes() {
        cluster.load_image(number, Path::new(archive))?;
    }
    Ok(())
}

fn node(arguments: Arguments<'_>) -> Result<()> {
    let cluster = Cluster::open(arguments.name())?;
    match &arguments.words[..] {
        ["add", archives @ ..] => {
            let images: Vec<&Path> = archives.iter().map(Path::new).collect();
            let new = NewNode {
                taint: arguments.taint,
                images: &images,
            };
            let number = cluster.add_node(new, &say)?;
            say(&format!("node{number} is ready"));
            Ok(())
        }
        ["delete", node] => {
            let number = node.parse().with_context(|| format!("node {node}"))?;
            let name = format!("node{number}");
            cluster.kubectl(&["delete", "node", &name, "--ignore-not-found"])?;
            cluster.remove_node(number)?;
            say(&format!("{name} is gone"));
            Ok(())
        }
        _ => bail!("node wants add or delete NODE; see: cargo xtask kube help"),
    }
}

/// Starts a process of the control plane, or ends it.
fn component(arguments: &Arguments<'_>, starts: bool) -> Result<()> {
    let [name] = arguments.words[..] else {
        bail!("stop and start want one component, as `cargo xtask kube status` names them");
    };
    let component = Component::ALL
        .into_iter()
        .find(|component| component.name() == name);
    let component = component.with_context(|| {
        let names = Component::ALL.map(Component::name);
        format!("{name}: components are {}", names.join(", "))
    })?;
    let cluster = Cluster::open(arguments.name())?;
    let mut processes = cluster.processes().into_iter();
    let runs = processes.any(|process| process.name == name && process.memory.is_some());
    match (starts, runs) {
        (true, true) => bail!("{name} runs already"),
        (false, false) => bail!("{name} does not run"),
        (true, false) => cluster.start_component(component)?,
        (false, true) => cluster.stop_component(component)?,
    }
    say(&format!(
        "{name} {}",
        if starts { "is started" } else { "has ended" }
    ));
    Ok(())
}

fn environment(arguments: Arguments<'_>) -> Result<()> {
    let cluster = Cluster::open(arguments.name())?;
    println!("export KUBECONFIG={}", quoted(&cluster.kubeconfig())?);
    println!("export PATH={}:\"$PATH\"", quoted(&cluster.programs())?);
    Ok(())
}

fn status(arguments: Arguments<'_>) -> Result<()> {
    let names = arguments
        .name
        .map_or_else(names, |name| vec![name.to_owned()]);
    if names.is_empty() {
        println!("no cluster; make one with: cargo xtask kube up");
    }
    for name in names {
        let Ok(cluster) = Cluster::open(&name) else {
            println!(
                "{name}: not running; cargo xtask kube down --name {name} removes what is left"
            );
            continue;
        };
        println!(
            "{name}: {}, in {}",
            cluster.server(),
            cluster.directory().display()
        );
        for process in cluster.processes() {
            let memory = process
                .memory
                .map_or("ended".to_owned(), |kib| format!("{} MiB", kib / 1024));
            println!("  {:<24} {:>8}  {memory}", process.name, process.pid);
        }
    }
    Ok(())
}

fn end(arguments: Arguments<'_>) -> Result<()> {
    if arguments.has("--orphans") {
        for name in sweep(&say)? {
            say(&format!("{name} is down: its owner ran no more"));
        }
        return Ok(());
    }
    let names = if arguments.has("--all") {
        names()
    } else {
        vec![arguments.name().to_owned()]
    };
    for name in names {
        let was = down(&name, &say)?;
        say(&format!(
            "{name} {}",
            if was { "is down" } else { "was not up" }
        ));
    }
    Ok(())
}

fn build(arguments: Arguments<'_>) -> Result<()> {
    let mut wanted = CONTROL_PLANE.to_vec();
    wanted.extend(NODES);
    if !arguments.has("--all") {
        return programs::ensure(&wanted, &say);
    }
    wanted.push(&HELM_CLIENT);
    programs::ensure(&wanted, &say)?;
    operator::crds().map(drop)
}

fn make_image(arguments: Arguments<'_>) -> Result<()> {
    let [program, name, archive] = arguments.words[..] else {
        bail!("image wants a program, NAME:TAG and an archive");
    };
    let archive = Path::new(archive);
    let stripped = archive.with_extension("stripped");
    let image = image::testudo(Path::new(program), &stripped, name)?;
    let size = image.write(archive)?;
    std::fs::remove_file(&stripped).with_context(|| stripped.display().to_string())?;
    for file in &image.files {
        eprintln!(
            "    {:>8.1} KiB {}",
            file.size as f64 / 1024.0,
            file.place.display()
        );
    }
    println!(
        "{}: {name}, {:.1} MiB, {} files",
        archive.display(),
        size as f64 / f64::from(1 << 20),
        image.files.len()
    );
    Ok(())
}

fn make_chart(arguments: Arguments<'_>) -> Result<()> {
    let [program, folder] = arguments.words[..] else {
        bail!("chart wants a program and a folder");
    };
    let chart = chart::package(Path::new(program), Path::new(folder), &say)?;
    println!("{}", chart.archive.display());
    println!("{}", chart.manifests.display());
    Ok(())
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().context("the path is not text")?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}
