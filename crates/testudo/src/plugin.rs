//! The same program as a plugin of kubectl: under the name `kubectl-testudo` it is `kubectl testudo`.

use std::path::Path;
use std::sync::OnceLock;

use clap::Command;

/// The file names under which kubectl (and `oc`) find it.
const NAMES: [&str; 2] = ["kubectl-testudo", "oc-testudo"];

/// What is for a node itself, or for clusters on one machine: it works, and is not shown.
const HIDDEN: [&str; 4] = ["lab", "doctor", "agent", "controller"];

/// Whether this process was started as a plugin.
pub(crate) fn is_plugin() -> bool {
    name() != "testudo"
}

/// What people call it: `testudo` or `kubectl testudo`.
pub(crate) fn name() -> &'static str {
    static NAME: OnceLock<&str> = OnceLock::new();
    NAME.get_or_init(|| called(&std::env::args_os().next().unwrap_or_default()))
}

fn called(program: &std::ffi::OsStr) -> &'static str {
    let file = Path::new(program).file_name().unwrap_or_default();
    match NAMES.iter().position(|name| file == *name) {
        Some(0) => "kubectl testudo",
        Some(_) => "oc testudo",
        None => "testudo",
    }
}

/// The command line under this process's name, in usage lines and examples too.
pub(crate) fn dressed(command: Command) -> Command {
    match is_plugin() {
        true => dress(command, name()),
        false => command,
    }
}

fn dress(command: Command, name: &'static str) -> Command {
    let hidden = HIDDEN.iter().fold(command, |command, verb| {
        match command.find_subcommand(verb) {
            Some(_) => command.mut_subcommand(verb, |verb| verb.hide(true)),
            None => command,
        }
    });
    examples(hidden, name).name(name).bin_name(name)
}

fn examples(command: Command, name: &str) -> Command {
    let shown = command.get_after_help().map(|text| text.to_string());
    let command = match shown {
        Some(text) => command.after_help(renamed(&text, name)),
        None => command,
    };
    let verbs: Vec<String> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    verbs.iter().fold(command, |command, verb| {
        command.mut_subcommand(verb, |verb| examples(verb, name))
    })
}

/// What people are told to type, under the name by which they called it.
pub(crate) fn renamed(text: &str, name: &str) -> String {
    let text = text.replace("`testudo ", &format!("`{name} "));
    text.replace("  testudo ", &format!("  {name} "))
}

/// A message under this process's name.
pub(crate) fn said(text: &str) -> String {
    renamed(text, name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_that_of_the_file() {
        for (program, name) in [
            ("/usr/local/bin/kubectl-testudo", "kubectl testudo"),
            ("kubectl-testudo", "kubectl testudo"),
            ("/x/oc-testudo", "oc testudo"),
            ("/usr/bin/testudo", "testudo"),
            ("", "testudo"),
        ] {
            assert_eq!(called(std::ffi::OsStr::new(program)), name, "{program}");
        }
    }

    #[test]
    fn examples_are_those_of_the_plugin() {
        let verb = Command::new("init").after_help("Examples:\n  testudo init   on");
        let command = Command::new("testudo")
            .subcommand(verb)
            .subcommand(Command::new("lab"));
        let mut dressed = dress(command, "kubectl testudo");
        let help = dressed.render_help().to_string();
        assert!(help.contains("Usage: kubectl testudo"), "{help}");
        assert!(!help.contains("lab"), "{help}");
        let init = dressed.find_subcommand("init").unwrap();
        let shown = init.get_after_help().unwrap().to_string();
        assert!(shown.contains("  kubectl testudo init   on"), "{shown}");
        assert_eq!(
            renamed("run `testudo init` first", "kubectl testudo"),
            "run `kubectl testudo init` first"
        );
    }
}
