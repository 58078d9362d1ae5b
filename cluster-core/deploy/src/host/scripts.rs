//! Programs that run on the host: one constant POSIX shell script a file in `scripts/`.
//!
//! Each script is idempotent, so a cut connection is answered by running the script again. The functions of
//! `common.sh` stand before each of them. A script runs with `dash`, `bash --posix` and BusyBox `sh`, and
//! passes `shellcheck -s sh`.

macro_rules! scripts {
    ($($name:ident = $($file:literal)+,)*) => {
        $(pub const $name: &str =
            concat!(include_str!("scripts/common.sh"), $(include_str!(concat!("scripts/", $file))),+);)*

        #[cfg(test)]
        const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),*];
    };
}

scripts! {
    AUTHORIZED_KEYS = "authorized_keys.sh",
    CHECKS = "checks.sh",
    CLEAN_UP = "clean_up.sh",
    COMPOSE_CONFIG = "compose_config.sh",
    CONTAINERS = "containers.sh",
    DROP_IMAGES = "drop_images.sh",
    DROP_RELEASE = "drop_release.sh",
    END_WORK = "end_work.sh",
    EXEC_MODELS = "exec_models.sh",
    EXEC_PULL = "exec_pull.sh",
    FILE_DIGESTS = "file_digests.sh",
    FREE_SESSION = "free_session.sh",
    HAS_RELEASE = "has_release.sh",
    IMAGE_CONTENTS = "image_contents.sh",
    IMAGE_IDS = "image_ids.sh",
    KEPT = "kept.sh",
    LAST_LOOK = "last_look.sh",
    LINK = "link.sh",
    LOAD = "load.sh",
    LOCK = "lock.sh",
    LOGS = "logs.sh",
    LOGS_OF = "logs_of.sh",
    MARK = "mark.sh",
    MISSING_DATA = "missing_data.sh",
    MISSING_FILES = "missing_files.sh",
    MISSING_IMAGES = "missing_images.sh",
    NEEDS_SUDO = "needs_sudo.sh",
    PREPARE = "prepare.sh",
    PUBLIC_KEY = "public_key.sh",
    PULL = "pull.sh",
    PULL_WITH_LOGIN = "pull_with_login.sh",
    REACHES = "reaches.sh",
    READ_NOTE = "read_note.sh",
    READ_LINK = "read_link.sh",
    READ_SECRETS = "read_secrets.sh",
    RECEIVE = "receive.sh",
    RECEIVE_DATA = "receive_data.sh",
    REMOVE = "relink.sh" "remove.sh",
    REMOVE_FILE = "remove_file.sh",
    STANDING = "standing.sh",
    SWITCH = "relink.sh" "switch.sh",
    TAG = "tag.sh",
    UP = "up.sh",
    WRITE = "write.sh",
}

/// Scripts that the login shell reads as one quoted word; see `ssh::script::on_command_line`.
#[cfg(test)]
const ON_COMMAND_LINE: [(&str, &str); 8] = [
    ("compose_config.sh", COMPOSE_CONFIG),
    ("file_digests.sh", FILE_DIGESTS),
    ("load.sh", LOAD),
    ("lock.sh", LOCK),
    ("pull_with_login.sh", PULL_WITH_LOGIN),
    ("receive.sh", RECEIVE),
    ("receive_data.sh", RECEIVE_DATA),
    ("write.sh", WRITE),
];

#[cfg(test)]
mod tests;
