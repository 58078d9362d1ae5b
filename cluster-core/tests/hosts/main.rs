//! SSH and deployments against real hosts: sshd, Docker, Compose. `AEGIS_TESTBED_HOSTS` names a JSON
//! list of hosts (`ip, port, user, key_path, known_hosts_path`), as `tests/testbed up 2 --json`
//! prints it. Each test leaves its host as it found it; they run one at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod before;
mod bench;
mod deploy;
mod faults;
mod images;
mod link;
mod link_key;
mod odd;
mod operations;
mod rollout;
mod ssh;
mod ssh_config;
mod sshd;
mod stack;
mod support;
