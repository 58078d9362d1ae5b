//! `aegis completions SHELL`: completions of a shell, generated from the command line itself. They are never older than
//! the program and never kept in the repository.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Context};

#[derive(Debug, Args)]
pub struct Completions {
    /// Shell to complete for, for example: source <(aegis completions bash)
    shell: Shell,
}

impl Completions {
    pub fn run(self, context: &Context) {
        context.output.bytes(&script(self.shell));
    }
}

fn script(shell: Shell) -> Vec<u8> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn every_shell_knows_the_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = String::from_utf8(script(shell)).unwrap();
            for word in ["deploy", "doctor", "print-config"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    /// Completes in a real bash.
    #[test]
    fn bash_completes_a_verb_and_a_client() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("aegis.bash");
        std::fs::write(&file, script(Shell::Bash)).unwrap();
        let complete = |words: &[&str]| {
            // As bash calls it: the program, the typed word, the word before it.
            let ask = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                       _aegis aegis \"${@: -1}\" \"${@: -2:1}\"; echo \"${COMPREPLY[*]}\"";
            let mut bash = Command::new("bash");
            bash.args(["-c", ask, "bash"]).arg(&file).args(words);
            String::from_utf8(bash.output().unwrap().stdout).unwrap().trim().to_owned()
        };
        assert_eq!(complete(&["aegis", "doc"]), "doctor");
        assert_eq!(complete(&["aegis", "mcp", "--print-config", "cur"]), "cursor");
    }
}
