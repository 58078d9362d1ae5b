//! A temporary directory in which a script runs with one shell, a home of its own and a stand-in `docker`.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

const DOCKER: &str = include_str!("docker.sh");
/// The options that BusyBox's `flock` has and scripts use. Debian builds BusyBox without it.
const BUSYBOX_FLOCK: &str = "#!/bin/sh\n\
    [ \"$1 $#\" = '-n 2' ] || { echo \"flock: invalid option $1\" >&2; exit 1; }\n\
    exec /usr/bin/flock -n \"$2\"\n";
const STATE_FILES: [&str; 8] = ["calls", "unknown", "images", "used", "fail", "logs", "networks", "volumes"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    Dash,
    BashPosix,
    /// BusyBox, for every other program too.
    BusyBox,
}

impl Shell {
    pub const ALL: [Shell; 3] = [Shell::Dash, Shell::BashPosix, Shell::BusyBox];

    fn words(self) -> &'static [&'static str] {
        match self {
            Shell::Dash => &["dash"],
            Shell::BashPosix => &["bash", "--posix"],
            Shell::BusyBox => &["busybox", "sh"],
        }
    }
}

/// Exit status and output of a script that ended.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.status, 0, "{self:?}");
        self.stdout
    }
}

#[derive(Debug)]
pub struct Sandbox {
    dir: TempDir,
    shell: Shell,
}

impl Sandbox {
    pub fn new(shell: Shell) -> Self {
        let sandbox = Self { dir: tempfile::tempdir().unwrap(), shell };
        for directory in ["bin", "home", "docker/containers"] {
            fs::create_dir_all(sandbox.path(directory)).unwrap();
        }
        for file in STATE_FILES {
            sandbox.write(&format!("docker/{file}"), "");
        }
        sandbox.program("docker", DOCKER);
        if shell == Shell::BusyBox {
            sandbox.program("flock", BUSYBOX_FLOCK);
            sandbox.link_applets();
        }
        sandbox
    }

    /// Puts a program before all others of its name.
    pub fn program(&self, name: &str, text: &str) {
        let path = format!("bin/{name}");
        // An applet is a link to the machine's own BusyBox, through which a write would go.
        let _ = fs::remove_file(self.path(&path));
        self.write(&path, text);
        fs::set_permissions(self.path(&path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn link_applets(&self) {
        let listed = Command::new("busybox").arg("--list").output();
        let listed = listed.expect("busybox is installed: tests/run installs busybox-static");
        let busybox = which("busybox");
        for applet in String::from_utf8(listed.stdout).unwrap().lines() {
            let link = self.path("bin").join(applet);
            if !link.exists() {
                std::os::unix::fs::symlink(&busybox, link).unwrap();
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    pub fn mode(&self, name: &str) -> u32 {
        fs::symlink_metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
    }

    /// Names in a directory, sorted.
    pub fn list(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).into_iter().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn container(&self, id: &str, project: &str, service: &str, more: &str) {
        let text = format!("project={project}\nservice={service}\nstatus=running\n{more}\n");
        self.write(&format!("docker/containers/{id}"), &text);
    }

    /// Calls of the stand-in that begin with these words.
    pub fn calls(&self, prefix: &str) -> Vec<String> {
        self.read("docker/calls").lines().filter(|call| call.starts_with(prefix)).map(str::to_owned).collect()
    }

    fn command(&self, script: &str, args: &[&str]) -> Command {
        let words = self.shell.words();
        let mut command = Command::new(words[0]);
        let text = format!("umask 077\naegis_script() {{\n{script}\n}}\n( aegis_script \"$@\" )\n");
        let path = match self.shell {
            Shell::BusyBox => self.text("bin"),
            Shell::Dash | Shell::BashPosix => {
                format!("{}:{}", self.text("bin"), std::env::var("PATH").unwrap())
            }
        };
        command.args(&words[1..]).args(["-c", &text, "sh"]).args(args);
        command.env_clear().env("PATH", path).env("HOME", self.text("home")).env("LC_ALL", "C");
        command.current_dir(self.dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    pub fn start(&self, script: &str, args: &[&str]) -> Child {
        let mut command = self.command(script, args);
        command.spawn().unwrap_or_else(|error| {
            panic!("{:?} cannot be started ({error}): tests/run installs what is missing", self.shell)
        })
    }

    #[track_caller]
    pub fn run(&self, script: &str, args: &[&str]) -> Ended {
        self.run_with(script, args, b"")
    }

    #[track_caller]
    pub fn run_with(&self, script: &str, args: &[&str], input: &[u8]) -> Ended {
        let mut child = self.start(script, args);
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let ended = finish(child);
        feeder.join().unwrap();
        assert_eq!(self.read("docker/unknown"), "", "calls that the stand-in does not know: {ended:?}");
        ended
    }
}

pub fn finish(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended {
        status: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed: tests/run installs it"))
}

/// Digest of every path, mode and content below a directory, to show that nothing changed.
pub fn snapshot(directory: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode();
            if metadata.is_dir() {
                lines.push(format!("{} {mode:o}", path.display()));
                open.push(path);
            } else if metadata.is_symlink() {
                lines.push(format!("{} -> {}", path.display(), fs::read_link(&path).unwrap().display()));
            } else {
                let text = fs::read(&path).unwrap();
                lines.push(format!("{} {mode:o} {}", path.display(), crate::hex_digest(&text)));
            }
        }
    }
    lines.sort();
    lines
}
