//! Whether the OCI runtime broke off a start before anything of the container ran.
//!
//! runc makes a container's first process in stages that talk to each other through a pipe, and on a loaded
//! machine a stage now and then dies (seen under Docker 26.1). Nothing is wrong with the
//! container then, and to start it again is safe and enough. The engine gives such ends no code of their
//! own, so runc's words tell; a memory limit too small for runc itself has the same words, every time.

/// How often a start is made before its failure is believed.
pub const STARTS_MAX: u32 = 3;

const WORDS: [&str; 3] =
    ["waiting for init preliminary setup", "can't get final child's PID from pipe", "read init-p:"];

/// `message`: of the engine, or of Compose that repeats it.
pub fn is_broken_start(message: &str) -> bool {
    WORDS.iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runcs_own_stages_are_tried_again() {
        let of = |why: &str| {
            is_broken_start(&format!(
                "failed to create task for container: failed to create shim task: OCI runtime create failed: \
                 runc create failed: unable to start container process: {why}: unknown"
            ))
        };
        assert!(of("waiting for init preliminary setup: read init-p: connection reset by peer"));
        assert!(of("can't get final child's PID from pipe: EOF"));
        assert!(!of("exec: \"nope\": executable file not found in $PATH"));
        assert!(!of(
            "error during container init: error mounting \"/x\" to rootfs: no such file or directory"
        ));
    }
}
