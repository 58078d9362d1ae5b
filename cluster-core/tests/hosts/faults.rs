//! Faults of the connection or the host during a deployment. A connection is cut at each step and at any byte, and a
//! disk fills.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use cluster_core::{
    deploy::{
        DeploySettings, DeploymentRequest, DeploymentState, DeploymentView, Journal as _, StepName,
        StepState, host::HostSession,
    },
    ssh::HostKeyPolicy,
    types::{ids::DeploymentId, principal::Origin},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    bench::{BASE, Bench, WAITS, bench, with_settings},
    support::{GOOD_NODE, Host, host, run, stand_in_node},
};

/// Connection to a host that is cut on request, or at a byte. The next connection works.
struct Line {
    port: u16,
    /// Connections that began before this number changed are closed.
    cuts: watch::Sender<u64>,
    /// Bytes, of both directions, after which all connections are closed once.
    left: Arc<AtomicU64>,
    /// No connection gets through.
    away: Arc<AtomicBool>,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

const NEVER: u64 = u64::MAX / 2;

impl Line {
    async fn to(host: &Host) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cuts, _) = watch::channel(0);
        let left = Arc::new(AtomicU64::new(NEVER));
        let away = Arc::new(AtomicBool::new(false));
        let (target, orders, budget) = ((host.ip.clone(), host.port), cuts.clone(), left.clone());
        let refuses = away.clone();
        let serving = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let (target, orders, budget) = (target.clone(), orders.clone(), budget.clone());
                tokio::spawn(async move {
                    let mut told = orders.subscribe();
                    let Ok(far) = TcpStream::connect((target.0.as_str(), target.1)).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = carry(near_in, far_out, &budget, &orders) => {}
                        () = carry(far_in, near_out, &budget, &orders) => {}
                        _ = told.changed() => {}
                    }
                });
            }
        });
        Self { port, cuts, left, away, _serving: tokio_util::task::AbortOnDropHandle::new(serving) }
    }

    fn cut(&self) {
        cut(&self.cuts);
    }

    fn cut_after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::SeqCst);
    }
}

fn cut(cuts: &watch::Sender<u64>) {
    cuts.send_modify(|number| *number += 1);
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    budget: &AtomicU64,
    cuts: &watch::Sender<u64>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let carried = count as u64;
        let left = budget.fetch_sub(carried, Ordering::SeqCst);
        if left <= carried {
            budget.store(NEVER, Ordering::SeqCst);
            // Not even complete packets: the rest of this one is lost.
            let _ = to.write_all(&buffer[..usize::try_from(left).unwrap()]).await;
            cut(cuts);
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Controller that reaches its host over the line.
struct OverLine {
    line: Line,
    direct: Bench,
    bench: Bench,
}

impl OverLine {
    async fn new(binary: PathBuf) -> Self {
        let direct = bench(host(1), Some(binary));
        direct.clean().await;
        let line = Line::to(&direct.host).await;
        let settings = DeploySettings {
            allow_loopback: true,
            approved_hosts: vec!["127.0.0.1".into()],
            known_hosts: Vec::new(),
            host_key_policy: HostKeyPolicy::AcceptNew,
            ..direct.settings.clone()
        };
        let bench =
            with_settings(direct.host.clone(), settings, direct.journal.clone(), direct.cluster.clone());
        Self { line, direct, bench }
    }

    fn request(&self) -> DeploymentRequest {
        DeploymentRequest {
            host: "127.0.0.1".into(),
            ssh_port: Some(self.line.port.into()),
            identity: Some("behind-a-line".into()),
            ..self.bench.request()
        }
    }

    async fn start(&self) -> DeploymentView {
        self.bench.deployments.start(&self.request(), Origin::Assistant).await.unwrap()
    }

    /// Ends healthy or as before, and is free for the next deployment.
    async fn settles(&self, id: &DeploymentId, what: &str) -> DeploymentView {
        let ended = self.bench.end_of(id).await;
        let connection = self.direct.host.connect().await;
        match ended.state {
            DeploymentState::Ready => {}
            DeploymentState::Failed => {
                run(&connection, r#"[ ! -e "$1" ] && [ -z "$(docker ps -aq)" ]"#, &[BASE]).await;
            }
            other => panic!("{what}: {other} {:?}", ended.failure),
        }
        let again = self.bench.deploy(&self.request()).await;
        assert_eq!(again.state, DeploymentState::Ready, "{what}: {:?}", again.failure);
        let stacks = run(&connection, "docker ps -q | wc -l", &[]).await;
        assert_eq!(stacks.trim(), "1", "{what}");
        ended
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_line_that_is_cut_at_any_step_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let world = OverLine::new(stand_in_node(dir.path(), "good", GOOD_NODE)).await;
    use StepName::{Check, Health, Images, Join, Settle, Start, Upload};
    for step in [Check, Upload, Images, Start, Health, Join, Settle] {
        world.direct.clean().await;
        let view = world.start().await;
        let mut views = world.bench.deployments.watch(&view.deployment_id).await.unwrap();
        let begun = |view: &DeploymentView| {
            view.steps.iter().any(|known| known.name == step && known.state == StepState::Running)
        };
        views.wait_for(begun).await.unwrap();
        world.line.cut();
        let ended = world.settles(&view.deployment_id, step.name()).await;
        assert_eq!(ended.state, DeploymentState::Ready, "cut at {step}: {:?}", ended.failure);
    }
    world.direct.clean().await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn cut_at_any_byte_leaves_host_healthy_or_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let world = OverLine::new(stand_in_node(dir.path(), "good", GOOD_NODE)).await;
    // From the middle of the login to the middle of the image.
    for bytes in [1_500, 4_000, 9_000, 15_000, 22_000, 40_000, 150_000] {
        world.direct.clean().await;
        world.line.cut_after(bytes);
        let view = world.start().await;
        world.settles(&view.deployment_id, &format!("cut after {bytes} bytes")).await;
        world.line.cut_after(NEVER);
    }
    world.direct.clean().await;
}

/// A jump host or sshd drops some of many simultaneous connections.
#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn dropped_first_connection_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let world = OverLine::new(stand_in_node(dir.path(), "good", GOOD_NODE)).await;
    world.line.away.store(true, Ordering::SeqCst);
    let view = world.start().await;
    let mut views = world.bench.deployments.watch(&view.deployment_id).await.unwrap();
    let dropped = |view: &DeploymentView| {
        let again = |message: &String| message.contains("trying again");
        view.steps
            .iter()
            .any(|step| step.name == StepName::Connect && step.message.as_ref().is_some_and(again))
    };
    views.wait_for(dropped).await.unwrap();
    world.line.away.store(false, Ordering::SeqCst);
    let ended = world.settles(&view.deployment_id, "a dropped connection").await;
    assert_eq!(ended.state, DeploymentState::Ready, "{:?}", ended.failure);

    // An unreachable host is reported after three attempts.
    world.direct.clean().await;
    world.line.away.store(true, Ordering::SeqCst);
    let view = world.start().await;
    let ended = world.bench.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Failed);
    assert!(ended.failure.unwrap().message.contains("nothing was changed"));
}

/// The controller is restarted while the host is away.
#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn resumed_deployment_waits_for_its_host_until_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let world = OverLine::new(stand_in_node(dir.path(), "good", GOOD_NODE)).await;
    let view = world.start().await;
    let ended = world.settles(&view.deployment_id, "the first start").await;
    assert_eq!(ended.state, DeploymentState::Ready, "{:?}", ended.failure);
    let resumed_away = async || {
        // The state after a kill of the controller: the record says running, and nothing runs.
        let mut record = world.bench.journal.get(&view.deployment_id).await.unwrap().unwrap();
        record.view.state = DeploymentState::Running;
        world.bench.journal.put(&record).await.unwrap();
        world.line.away.store(true, Ordering::SeqCst);
        let Bench { host, settings, journal, cluster, .. } = &world.bench;
        let again = with_settings(host.clone(), settings.clone(), journal.clone(), cluster.clone());
        assert_eq!(again.deployments.resume_unfinished().await.unwrap(), 1);
        let mut views = again.deployments.watch(&view.deployment_id).await.unwrap();
        let rechecks = |view: &DeploymentView| {
            view.steps
                .iter()
                .any(|step| step.name == StepName::Connect && step.state == StepState::Rechecking)
        };
        views.wait_for(rechecks).await.unwrap();
        again
    };
    let again = resumed_away().await;
    world.line.away.store(false, Ordering::SeqCst);
    let ended = again.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Ready, "{:?}", ended.failure);

    let again = resumed_away().await;
    again.deployments.cancel(&view.deployment_id).await.unwrap();
    let ended = again.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Interrupted, "{:?}", ended.failure);
    world.line.away.store(false, Ordering::SeqCst);
    world.direct.clean().await;
}

/// Attempts for a host that was not changed yet.
const BOUNDED_TRIES: &str = "try 9";

/// The host stays away for longer than a cut may last while nothing was changed.
#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn outage_of_a_changed_host_is_rechecked_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let world = OverLine::new(stand_in_node(dir.path(), "good", GOOD_NODE)).await;
    let view = world.start().await;
    let mut views = world.bench.deployments.watch(&view.deployment_id).await.unwrap();
    let images = |view: &DeploymentView, state, says: &str| {
        view.steps.iter().any(|step| {
            let message = step.message.as_deref().unwrap_or_default();
            step.name == StepName::Images && step.state == state && message.contains(says)
        })
    };
    views.wait_for(|view| images(view, StepState::Running, "")).await.unwrap();
    world.line.away.store(true, Ordering::SeqCst);
    world.line.cut();
    // Pauses of 0.5 to 30 s, each with as much again by chance at most.
    let patience = Duration::from_secs(300);
    let tried = views.wait_for(|view| images(view, StepState::Rechecking, BOUNDED_TRIES));
    tokio::time::timeout(patience, tried).await.unwrap().unwrap();
    world.line.away.store(false, Ordering::SeqCst);
    let ended = world.settles(&view.deployment_id, "an outage").await;
    assert_eq!(ended.state, DeploymentState::Ready, "{:?}", ended.failure);
    world.direct.clean().await;
}

/// Disk of 400 MB. It is in memory, which the checks detect for tmpfs, but not for an overlay on it.
const SMALL_DISK: &str = r#"mkdir -p "$1" /run/disk && mount -t tmpfs -o size=400m tmpfs /run/disk &&
    cd /run/disk && mkdir lower upper work &&
    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay "$1""#;

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_disk_that_fills_in_the_middle_leaves_the_host_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let connection = bench.host.connect().await;
    run(&connection, SMALL_DISK, &[BASE]).await;
    let outcome = std::panic::AssertUnwindSafe(filled(&bench));
    let outcome = futures::FutureExt::catch_unwind(outcome).await;
    run(&connection, r#"umount -l "$1" /run/disk; rm -rf -- "$1" /run/disk"#, &[BASE]).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

async fn filled(bench: &Bench) {
    // It passes its checks and waits for the host, which fills meanwhile.
    let connection = bench.host.connect().await;
    let theirs = DeploymentId::mint(2, 2);
    let held = HostSession { connection: &connection, base: BASE }
        .lock(&theirs, "another controller", Duration::ZERO)
        .await
        .unwrap();
    let waiting = DeploymentRequest { lock_wait_seconds: Some(60), ..bench.request() };
    let view = bench.deployments.start(&waiting, Origin::Assistant).await.unwrap();
    run(&bench.host.connect().await, WAITS, &[view.deployment_id.as_str()]).await;
    run(&connection, r#"head -c 500M /dev/zero > "$1/filler" 2>/dev/null || true"#, &[BASE]).await;
    drop(held);
    let failed = bench.end_of(&view.deployment_id).await;
    assert_eq!(failed.state, DeploymentState::Failed, "{failed:#?}");
    let failure = failed.failure.unwrap();
    assert!(failure.message.contains("as it was before"), "{failure:?}");
    let left = run(&connection, r#"ls -A "$1"; docker ps -aq"#, &[BASE]).await;
    assert_eq!(left.trim(), "filler", "what is not ours stays, and nothing of ours does");

    run(&connection, r#"rm "$1/filler""#, &[BASE]).await;
    let again = bench.deploy(&bench.request()).await;
    assert_eq!(again.state, DeploymentState::Ready, "{:?}", again.failure);
    HostSession { connection: &connection, base: BASE }.remove(true).await.unwrap();
}
