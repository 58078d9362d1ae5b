//! Compose reads a project in a directory that is removed afterwards.

use super::{
    super::*,
    sandbox::{Ended, Sandbox, Shell},
};

/// Separates the parts of the answer. The name of a temporary directory cannot end with the marker.
const MARKER: &str = "-marker-";
const ARGUMENTS: [&str; 8] = ["p", "project", "complete", "variables", MARKER, "debug", "", "web"];

fn archive(names: &[&str]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for name in names {
        let text = if name.ends_with(".yml") { "services:\n  web:\n  db:\n" } else { "" };
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Runs the script with a directory for its files that only this run uses.
fn config(sandbox: &Sandbox, arguments: &[&str], input: &[u8]) -> Ended {
    std::fs::create_dir_all(sandbox.path("run")).unwrap();
    let script = format!("XDG_RUNTIME_DIR='{}'\n{COMPOSE_CONFIG}", sandbox.text("run"));
    let ended = sandbox.run_with(&script, arguments, input);
    assert!(sandbox.list("run").is_empty(), "files stay: {ended:?}");
    ended
}

#[test]
fn compose_reads_the_project_and_nothing_stays() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let files = ["project/docker-compose.yml", "project/sub/more.yml", "project/variables", "complete"];
        let text = config(&sandbox, &ARGUMENTS, &archive(&files)).success();
        let parts: Vec<&str> = text.split("-marker-\n").collect();
        let [_, places, services, profiles, json, stderr, status] = parts.as_slice() else {
            panic!("{text}");
        };
        let (top, directory) = places.trim_end().split_once('\n').unwrap();
        assert!(directory.starts_with(top) && directory.ends_with("/project"), "{places}");
        assert_eq!((services.trim(), profiles.trim()), ("web\ndb", "debug"));
        assert_eq!(json.trim(), "{\"files\": \"docker-compose.yml sub variables\", \"services\": \"web\"}");
        assert_eq!((stderr.trim(), *status), ("", "0\n"));

        let mut both = ARGUMENTS;
        both[6] = "second.yml";
        sandbox.write("docker/fail", "compose-config the file is wrong\n");
        let files = ["project/docker-compose.yml", "project/second.yml", "complete"];
        let text = config(&sandbox, &both, &archive(&files)).success();
        assert!(text.ends_with("the file is wrong\n\n-marker-\n1\n"), "{text}");
        assert!(sandbox.calls("compose -p p")[3].contains("second.yml"));
    }
}

#[test]
fn stream_that_was_cut_is_not_read() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let ended = config(&sandbox, &ARGUMENTS, &archive(&["project/docker-compose.yml"]));
        assert_eq!(ended.status, 1);
        assert!(ended.stderr.contains("the stream of files was cut"), "{ended:?}");
    }
}

#[test]
fn host_without_compose_answers_nothing() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        sandbox.write("docker/fail", "compose unknown command: docker compose\n");
        let text = config(&sandbox, &ARGUMENTS, &archive(&["complete"])).success();
        assert_eq!(text, "");
    }
}
