//! The lock of a host.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin},
    time::{Duration, SystemTime},
};

use super::{
    super::LOCK,
    host::BASE,
    sandbox::{Sandbox, Shell},
};

const LEASE_SECS: u64 = 120;

/// A script that holds the lock as long as its standard input is open.
pub struct Holder {
    child: Child,
    stdin: ChildStdin,
}

/// Runs the script until it says how it went.
fn try_hold(sandbox: &Sandbox, deployment: &str, wait_seconds: u64) -> Result<Holder, String> {
    let (base, who) = (sandbox.text(BASE), format!("{deployment} of test"));
    let (wait, lease) = (wait_seconds.to_string(), LEASE_SECS.to_string());
    let mut child = sandbox.start(LOCK, &[&base, deployment, &who, &wait, &lease]);
    let stdin = child.stdin.take().unwrap();
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "AEGIS-LOCK" {
            break;
        }
        said.push_str(&line);
    }
    match said.strip_prefix("BUSY ") {
        None => Ok(Holder { child, stdin }),
        Some(holder) => {
            drop(stdin);
            child.wait().unwrap();
            Err(holder.to_owned())
        }
    }
}

pub fn hold(sandbox: &Sandbox, deployment: &str, wait_seconds: u64) -> Holder {
    try_hold(sandbox, deployment, wait_seconds).unwrap()
}

pub fn release(mut holder: Holder) {
    drop(holder.stdin);
    holder.child.wait().unwrap();
}

/// Sets the time of the last beat back.
fn age_beat(sandbox: &Sandbox, seconds: u64) {
    let beat = fs::File::options().write(true).open(sandbox.path(&format!("{BASE}/.lock.beat"))).unwrap();
    beat.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[test]
fn lock_excludes_others_and_ends_with_its_input() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let held = hold(&sandbox, "d1", 0);
        let busy = try_hold(&sandbox, "d2", 0).err().unwrap();
        assert!(busy.starts_with("d1 of test, for "), "{shell:?}: {busy}");
        release(held);
        release(hold(&sandbox, "d2", 0));
    }
}

#[test]
fn lock_is_waited_for() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let held = hold(&sandbox, "d1", 0);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| try_hold(&sandbox, "d2", 60));
            release(held);
            release(waiting.join().unwrap().unwrap());
        });
    }
}

#[test]
fn own_holder_is_ended() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let mut left = hold(&sandbox, "d1", 0);
        let again = hold(&sandbox, "d1", 3);
        left.child.wait().unwrap();
        release(again);
    }
}

/// A connection that was cut without a word: sshd keeps the holder, and no beat comes.
#[test]
fn holder_without_beats_is_ended() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let mut left = hold(&sandbox, "d1", 0);
        age_beat(&sandbox, LEASE_SECS - 60);
        assert!(try_hold(&sandbox, "d2", 0).is_err(), "{shell:?}: its lease runs");
        age_beat(&sandbox, LEASE_SECS + 60);
        let next = hold(&sandbox, "d2", 3);
        left.child.wait().unwrap();
        release(next);
    }
}

#[test]
fn beat_renews_the_lease() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let mut held = hold(&sandbox, "d1", 0);
        age_beat(&sandbox, LEASE_SECS + 60);
        held.stdin.write_all(b"\n").unwrap();
        let beat = sandbox.path(&format!("{BASE}/.lock.beat"));
        let is_fresh = || {
            fs::metadata(&beat).unwrap().modified().unwrap().elapsed().unwrap_or_default()
                < Duration::from_secs(60)
        };
        let deadline = SystemTime::now() + Duration::from_secs(20);
        while !is_fresh() {
            assert!(SystemTime::now() < deadline, "{shell:?}: no beat");
            std::thread::yield_now();
        }
        assert!(try_hold(&sandbox, "d2", 0).is_err());
        release(held);
    }
}
