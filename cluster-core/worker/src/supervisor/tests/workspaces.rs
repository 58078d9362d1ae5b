//! Workspaces and artifacts in real containers.

use std::{fs, os::unix::fs::symlink, path::Path};

use aegis_content::{BOUNDS, pack::pack, roots, unpack::unpack};
use aegis_types::{
    execution::{
        content::{Content, ImageOffer},
        manifest::WorkspaceNote,
    },
    principal::Origin,
};
use bytes::Bytes;

use super::*;
use crate::artifacts;

/// Packs a directory and brings it to the worker, in small pieces.
async fn bring(supervisor: &Supervisor, directory: &Path) -> WorkspaceNote {
    let elsewhere = tempfile::tempdir().unwrap();
    let source = roots::open(directory, Origin::Person, &[], elsewhere.path()).unwrap();
    let path = elsewhere.path().join("packed");
    let packed = pack(&source, &fs::File::create(&path).unwrap(), &BOUNDS).unwrap();
    let note = WorkspaceNote { digest: packed.digest, bytes: packed.bytes };
    let content = Content::Workspace { digest: note.digest.clone(), bytes: note.bytes };
    supervisor.incoming().receive(content, pieces(fs::read(path).unwrap())).await.unwrap();
    note
}

fn pieces(bytes: Vec<u8>) -> futures::stream::BoxStream<'static, Result<Bytes>> {
    let pieces = bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>();
    futures::stream::iter(pieces).boxed()
}

fn workspace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("src")).unwrap();
    fs::write(at("src/data"), "42").unwrap();
    symlink("src/data", at("link")).unwrap();
    let script = "set -e; id -u; pwd; cat link; echo ok > src/data; mkdir -p out/deep; \
         cp src/data out/deep/it; ln out/deep/it out/same; ln -s deep/it out/to";
    fs::write(at("run.sh"), script).unwrap();
    directory
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn a_workspace_is_there_and_what_it_leaves_comes_back() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let mut order = order("sh run.sh", "", |request| {
        request.artifacts = vec!["out".into(), "/workspace/src/data".into(), "absent".into()];
    });
    order.manifest.workspace = Some(WorkspaceNote { digest: "0".repeat(64), bytes: 1 });
    let refused = supervisor.require(&order, 0, None).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::ContentMissing);
    assert!(supervisor.held().is_empty(), "nothing was journaled");
    let note = bring(&supervisor, workspace().path()).await;
    order.manifest.workspace = Some(note.clone());
    supervisor.require(&order, 0, None).await.unwrap();
    let all = events(&supervisor, &order, 0).await;
    assert!(matches!(all.last().unwrap().kind, EventKind::Completed { .. }), "{all:?}");
    assert_eq!(text(&all, OutputStream::Stdout), "0\n/workspace\n42");
    let volumes = supervisor.engine().our_volumes(supervisor.owner()).await.unwrap();
    assert_eq!(volumes.len(), 2, "the workspace and the home directory");

    let (collected, path) = supervisor.artifacts(&order.execution_id, 1).unwrap().unwrap();
    assert_eq!(collected.artifacts.missing, ["absent"]);
    let read = artifacts::read(&collected, &path, 0).await.unwrap();
    let read = read.map(|piece| piece.unwrap().to_vec()).concat().await;
    assert_eq!(read.len() as u64, collected.artifacts.bytes);
    let into = tempfile::tempdir().unwrap();
    let counts = unpack(std::io::Cursor::new(read), into.path(), false, &BOUNDS).unwrap();
    assert_eq!(counts.entries, collected.artifacts.files);
    for name in ["out/deep/it", "out/same", "out/to", "src/data"] {
        assert_eq!(fs::read_to_string(into.path().join(name)).unwrap(), "ok\n", "{name}");
    }

    supervisor.release(&[order.attempt()]).await.unwrap();
    assert!(supervisor.engine().our_volumes(supervisor.owner()).await.unwrap().is_empty());
    assert!(supervisor.engine().ours(supervisor.owner()).await.unwrap().is_empty());
    assert!(supervisor.incoming().kept().read(&note.digest).is_err(), "it goes with its last execution");
}

/// Creates an image that runs as another user, without a build.
fn image_of(user: &str, node_id: &NodeId) -> String {
    let docker = |words: &[&str]| {
        let output = Command::new("docker").args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let name = format!("aegis-test-user-{}-{node_id}", user.replace(':', "-"));
    let image = format!("{name}:1");
    let lists = tempfile::tempdir().unwrap();
    fs::write(lists.path().join("passwd"), "root:x:0:0::/:/bin/sh\napp:x:1234:1235::/:/bin/sh\n").unwrap();
    docker(&["create", "--name", &name, IMAGE]);
    docker(&["cp", &lists.path().join("passwd").to_string_lossy(), &format!("{name}:/etc/passwd")]);
    docker(&["commit", "--change", &format!("USER {user}"), &name, &image]);
    docker(&["rm", &name]);
    image
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn the_images_own_user_may_write_its_workspace() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    for (user, uid) in [("app", "1234"), ("77:88", "77")] {
        let image = image_of(user, &setting.node_id);
        let mut order = order("sh run.sh", "", |request| request.image = Some(image.clone()));
        order.manifest.workspace = Some(bring(&supervisor, workspace().path()).await);
        let all = events(&supervisor, &order, 0).await;
        let _ = Command::new("docker").args(["rmi", "-f", &image]).output();
        assert!(matches!(all.last().unwrap().kind, EventKind::Completed { .. }), "{all:?}");
        assert_eq!(text(&all, OutputStream::Stdout), format!("{uid}\n/workspace\n42"));
        supervisor.release(&[order.attempt()]).await.unwrap();
    }
}

/// Does what build tools do: writes to its home and caches, and runs what it has made in `TMPDIR` and `/tmp`.
const BUILDS: &str = r#"set -e
for place in "$TMPDIR" /tmp; do printf '#!/bin/sh\necho ran\n' > "$place/made"; chmod +x "$place/made"; "$place/made"; done
touch "$HOME/.config"; mkdir -p "$XDG_CACHE_HOME/a" "$CARGO_HOME/registry" "$GOMODCACHE/b"
case "$(pwd):$HOME" in /workspace:/scratch) ;; *) exit 9;; esac"#;

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn build_tools_find_places_to_write_to() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let image = image_of("app", &setting.node_id);
    let builds = order(BUILDS, "", |request| {
        (request.image, request.empty_workspace) = (Some(image.clone()), true);
    });
    let all = events(&supervisor, &builds, 0).await;
    let _ = Command::new("docker").args(["rmi", "-f", &image]).output();
    assert!(matches!(all.last().unwrap().kind, EventKind::Completed { .. }), "{all:?}");
    assert_eq!(text(&all, OutputStream::Stdout), "ran\nran\n");

    // Without a workspace there is memory: nothing runs from it unless asked for.
    let script = "echo 'echo ran' > $HOME/made; chmod +x $HOME/made; $HOME/made; df -m /dev/shm | tail -n 1";
    for (tmp_exec, said) in [(true, "ran\n"), (false, "")] {
        let asked = order(script, "", |request| {
            request.security.tmp_exec = tmp_exec;
            request.security.shm_mb = Some(100);
        });
        let out = text(&events(&supervisor, &asked, 0).await, OutputStream::Stdout);
        let shm = out.strip_prefix(said).unwrap_or_else(|| panic!("{out}"));
        assert_eq!(shm.split_whitespace().nth(1), Some("100"), "{out}");
    }
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn content_that_is_not_what_was_told_is_not_kept() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let digest = hex::encode(aegis_identity::sha256(b"right"));
    let content = |bytes| Content::Workspace { digest: digest.clone(), bytes };
    let incoming = supervisor.incoming();
    for (bytes, sent) in [(5, &b"wrong"[..]), (5, b"righ"), (5, b"right!")] {
        let error = incoming.receive(content(bytes), pieces(sent.to_vec())).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    }
    let error = incoming.receive(content(u64::MAX), pieces(Vec::new())).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    assert_eq!(fs::read_dir(setting.directory.path().join("content")).unwrap().count(), 0);
    incoming.receive(content(5), pieces(b"right".to_vec())).await.unwrap();
    let unclaimed = supervisor.incoming().kept().read(&digest);
    assert!(unclaimed.is_ok());
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn an_offered_image_is_asked_for_only_where_it_is_not_the_one() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let here = supervisor.engine().local_image(IMAGE).await.unwrap().unwrap();
    let order = order("true", "", |_| {});
    let offer = |digest: &str, exact| ImageOffer {
        digest: digest.to_owned(),
        architecture: here.architecture.clone(),
        exact,
    };
    supervisor.require(&order, 0, Some(&offer(&here.content.digest(), true))).await.unwrap();
    supervisor.require(&order, 0, Some(&offer("another", false))).await.unwrap();
    let missing = supervisor.require(&order, 0, Some(&offer("another", true))).await.unwrap_err();
    assert_eq!(missing.code(), ErrorCode::ContentMissing);
    let unfit = ImageOffer { architecture: "s390x".into(), ..offer("another", true) };
    supervisor.require(&order, 0, Some(&unfit)).await.unwrap();
    supervisor.require(&order, 3, Some(&offer("another", true))).await.expect("it runs already");
}
