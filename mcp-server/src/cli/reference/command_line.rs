//! Reference of the command line, from clap's tree of commands.

use clap::{Arg, Command, CommandFactory as _};

use super::{
    super::Cli,
    markdown::{code, head, section, table},
};

pub fn page() -> String {
    let mut root = Cli::command();
    root.build();
    let mut page = head(
        "Command line",
        "the definitions of the commands",
        "Data goes to standard output, messages go to standard error. Every command takes `--output json` and \
         `--output yaml`; the fields are those of the [REST API](rest.md). Exit statuses are listed with the \
         [error codes](errors.md).",
    );
    section(&mut page, "Options of every command", "");
    page.push('\n');
    let global: Vec<_> = root.get_arguments().filter(|arg| arg.is_global_set()).map(row).collect();
    table(&mut page, ["option", "meaning"], &global);
    walk(&mut page, &root);
    page
}

fn walk(page: &mut String, command: &Command) {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        let path = verb.get_bin_name().unwrap_or_else(|| verb.get_name()).to_owned();
        let about = verb.get_long_about().or(verb.get_about()).map(ToString::to_string).unwrap_or_default();
        section(page, &path, &sentence(&about));
        let groups = verb.get_subcommands().next().is_some();
        if !groups || verb.get_arguments().any(|arg| !is_common(arg)) {
            let usage = verb.clone().render_usage().to_string();
            let usage = usage.trim_start_matches("Usage:").trim();
            let lines: Vec<_> = usage.lines().map(str::trim).collect();
            page.push_str(&format!("\n```text\n{}\n```\n", lines.join("\n")));
        }
        let rows: Vec<_> = verb.get_arguments().filter(|arg| !is_common(arg)).map(row).collect();
        if !rows.is_empty() {
            page.push('\n');
            table(page, ["argument", "meaning"], &rows);
        }
        walk(page, verb);
    }
}

/// True for arguments that stand at the top of the page, or on no page.
fn is_common(arg: &Arg) -> bool {
    arg.is_global_set() || arg.is_hide_set() || arg.get_id() == "help"
}

fn row(arg: &Arg) -> [String; 2] {
    let names: Vec<_> = arg.get_value_names().into_iter().flatten().map(|name| format!("<{name}>")).collect();
    let values = if arg.get_action().takes_values() { names.join(" ") } else { String::new() };
    let name = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long} {values}"),
        (None, Some(long)) => format!("--{long} {values}"),
        (Some(short), None) => format!("-{short} {values}"),
        (None, None) => values,
    };
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut meaning = sentence(&help);
    if arg.get_action().takes_values() {
        let choices: Vec<_> = arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| code(value.get_name()))
            .collect();
        if !choices.is_empty() {
            meaning.push_str(&format!(" One of {}.", choices.join(", ")));
        }
        let defaults: Vec<_> =
            arg.get_default_values().iter().map(|value| code(&value.to_string_lossy())).collect();
        if !defaults.is_empty() {
            meaning.push_str(&format!(" Default: {}.", defaults.join(", ")));
        }
    }
    if let Some(variable) = arg.get_env() {
        meaning.push_str(&format!(" Environment: `{}`.", variable.to_string_lossy()));
    }
    [code(name.trim()), meaning.trim().to_owned()]
}

/// Ends a help text, which clap has without a full stop, and sets its default apart.
fn sentence(text: &str) -> String {
    let text = text.trim();
    if let Some((text, default)) = text.strip_suffix(']').and_then(|text| text.split_once(" [default: ")) {
        return format!("{} Default: {default}.", sentence(text));
    }
    if text.is_empty() || text.ends_with(['.', ':', ']', ')']) { text.to_owned() } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_ends_and_names_its_default() {
        assert_eq!(sentence("Wait so long [default: 60s]"), "Wait so long. Default: 60s.");
        assert_eq!(sentence("Done."), "Done.");
        assert_eq!(sentence(""), "");
    }

    #[test]
    fn page_lists_visible_verbs_only() {
        let page = page();
        assert!(page.contains("\n## aegis node drain\n"));
        assert!(!page.contains("\n## aegis network-guard\n") && !page.contains("\n## aegis reference\n"));
    }
}
