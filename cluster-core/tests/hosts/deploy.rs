//! Checks, images and whole deployments, with a stand-in for the node and for the cluster.

use std::time::Duration;

use cluster_core::{
    deploy::{
        DeploySettings, DeploymentRequest, DeploymentState, StepName, StepState, TunnelSource,
        env_file::EnvFile, host::HostSession, model::plan::Change, preflight::gather,
    },
    engine::node_image::{ImageSource, NodeImage},
    ssh::{LinkState, client_config::ConfigFile},
    types::{error::ErrorCode, ids::DeploymentId, principal::Origin, secret::Secret},
};

use crate::{
    bench::{BASE, bench, with_settings},
    support::{BROKEN_NODE, GOOD_NODE, LIMIT, host, run, stand_in_node},
};

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_good_host_passes_its_checks_and_nothing_is_left() {
    let connection = host(0).connect().await;
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let started = std::time::Instant::now();
    let facts = gather::gather(&connection, BASE, &["none:none".to_owned()], now).await.unwrap();
    println!("facts in {:?}: {facts:?}", started.elapsed());
    assert_eq!((facts.os.as_str(), facts.arch.as_str()), ("Linux", std::env::consts::ARCH));
    assert!(facts.docker_version.is_some() && facts.compose_version.is_some() && facts.has_flock);
    assert!(facts.base_writable && !facts.base_exists && facts.clock_skew_seconds.abs() < 5);
    assert_eq!(facts.forwarding_error, None);
    assert!(facts.listening.contains(&22));
    run(&connection, "! ls /tmp/aegis-check-* 2>/dev/null", &[]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn users_without_docker_or_directory_get_findings() {
    let mut host = host(0);
    host.user = "plain".into();
    let bench = bench(host, None);
    let view = bench.deployments.plan(&bench.request(), Origin::Person).await.unwrap();
    let codes: Vec<&str> = view.findings.iter().map(|finding| finding.code.as_str()).collect();
    assert!(codes.contains(&"docker_permission") && codes.contains(&"base_directory"), "{:?}", view.findings);
    let docker = view.findings.iter().find(|finding| finding.code == "docker_permission").unwrap();
    assert!(docker.message.contains("sudo") && docker.fix.contains("NOPASSWD"), "{docker}");
    assert!(!view.can_deploy);
    let ended = bench.deploy(&bench.request()).await;
    assert_eq!(ended.state, DeploymentState::Failed);
    assert_eq!(ended.failure.unwrap().code, ErrorCode::HostCheckFailed);
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn our_own_executable_runs_in_its_image() {
    let connection = host(0).connect().await;
    let image = NodeImage::build(&ImageSource::Own).unwrap();
    let remote = HostSession { connection: &connection, base: BASE };
    remote.load(&image, LIMIT).await.unwrap();
    assert!(remote.missing_images(std::slice::from_ref(&image.reference)).await.unwrap().is_empty());
    let script = r#"docker run --rm --read-only --cap-drop ALL --user 1234:1234 "$1" --list | tail -1; docker image rm "$1" >/dev/null"#;
    let listed = run(&connection, script, &[&image.reference]).await;
    assert!(listed.contains("tests, "), "{listed}");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn env_values_arrive_byte_for_byte_through_compose() {
    let connection = host(0).connect().await;
    let values = [
        "it's", "\"", "end\\", "$X", "${X}", "#", " # x", "a\nb", "\r", "\t", "\\n", "é✓", "$$", "a=b",
        "'\"`\\$",
    ];
    let mut file = EnvFile::default();
    let mut compose = String::from("services:\n  a:\n    image: x\n    environment:\n");
    for (index, value) in values.iter().enumerate() {
        file.set(&format!("V{index}"), *value).unwrap();
        compose.push_str(&format!("      V{index}: \"${{V{index}}}\"\n"));
    }
    run(&connection, r#"rm -rf "$1"; mkdir "$1""#, &["/tmp/aegis-test-env"]).await;
    let sftp = connection.sftp().await.unwrap();
    sftp.write_file("/tmp/aegis-test-env/.env", file.render().as_bytes(), 0o600).await.unwrap();
    sftp.write_file("/tmp/aegis-test-env/docker-compose.yml", compose.as_bytes(), 0o600).await.unwrap();
    let read = run(
        &connection,
        r#"cd "$1" && docker compose config --format json; rm -rf "$1""#,
        &["/tmp/aegis-test-env"],
    )
    .await;
    let read: serde_json::Value = serde_json::from_str(&read).unwrap();
    for (index, value) in values.iter().enumerate() {
        // `config` prints a dollar sign doubled, so that its output can be read again.
        let printed =
            read["services"]["a"]["environment"][format!("V{index}")].as_str().unwrap().replace("$$", "$");
        assert_eq!(printed, *value, "V{index}");
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_machine_becomes_a_node_and_only_what_changed_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let good = stand_in_node(dir.path(), "good", GOOD_NODE);
    let bench = bench(host(1), Some(good));
    bench.clean().await;
    let connection = bench.host.connect().await;

    let plan = bench.deployments.plan(&bench.request(), Origin::Assistant).await.unwrap();
    println!("{}", plan.plan);
    assert!(plan.can_deploy && plan.plan.first_deployment);
    run(&connection, r#"[ ! -e "$1" ]"#, &[BASE]).await;

    let request = DeploymentRequest { idempotency_key: Some("one".into()), ..bench.request() };
    let first = bench.deploy(&request).await;
    assert_eq!(first.state, DeploymentState::Ready, "{:?}", first.failure);
    let same = bench.deployments.start(&request, Origin::Assistant).await.unwrap();
    assert_eq!(same.deployment_id, first.deployment_id);
    let other = DeploymentRequest { tags: vec![], ..request.clone() };
    assert_eq!(
        bench.deployments.start(&other, Origin::Assistant).await.unwrap_err().code(),
        ErrorCode::Conflict
    );

    let layout = run(&connection, r#"cd "$1"; stat -c '%a %N' . .env current run current/aegis-config.yaml; until docker compose ps --format '{{.Service}} {{.Health}}' | grep healthy; do sleep 0.5; done; docker compose logs node 2>&1 | grep llm"#, &[BASE]).await;
    println!("{layout}");
    assert!(layout.contains("node healthy") && layout.contains("llm http://primary:8150"));
    let container = r#"docker ps -q --no-trunc --filter label=com.docker.compose.project=aitheros-edge"#;
    let before = run(&connection, container, &[]).await;

    let again = bench.deploy(&bench.request()).await;
    assert_eq!(again.state, DeploymentState::Ready, "{:?}", again.failure);
    assert_eq!(
        run(&connection, container, &[]).await,
        before,
        "a redeploy that changes nothing recreates nothing"
    );
    let plan = bench.deployments.plan(&bench.request(), Origin::Assistant).await.unwrap().plan;
    assert!(plan.files.iter().all(|file| file.change == Change::Unchanged), "{:?}", plan.files);

    let identity = DeploymentRequest { identity: Some("other-node".into()), ..bench.request() };
    let refused = bench.deploy(&identity).await;
    assert!(refused.failure.unwrap().message.contains("already is the node"));

    let broken = stand_in_node(dir.path(), "broken", BROKEN_NODE);
    let failed = bench.upgraded(broken.clone()).deploy(&bench.request()).await;
    assert_eq!(failed.state, DeploymentState::RolledBack, "{:?}", failed.failure);
    assert!(failed.log_tail.unwrap().contains("broken on purpose"));
    let after =
        run(&connection, r#"cd "$1"; docker compose ps --format '{{.Image}} {{.State}}'"#, &[BASE]).await;
    assert!(after.contains("running"), "{after}");

    bench.clean().await;
    let failed = bench.upgraded(broken).deploy(&bench.request()).await;
    assert_eq!(failed.state, DeploymentState::Failed);
    assert!(failed.failure.as_ref().unwrap().message.contains("as it was before"), "{:?}", failed.failure);
    run(&connection, r#"[ ! -e "$1" ] && [ -z "$(docker ps -aq)" ]"#, &[BASE]).await;
    assert!(bench.cluster.admitted.lock().unwrap().len() <= 2);
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_busy_host_names_who_holds_it_and_secrets_stay_out() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let connection = bench.host.connect().await;
    let remote = HostSession { connection: &connection, base: BASE };
    let (mine, theirs) = (DeploymentId::mint(1, 1), DeploymentId::mint(2, 2));
    let held = remote.lock(&theirs, "another controller", Duration::ZERO).await.unwrap();
    let busy = remote.lock(&mine, "test", Duration::ZERO).await.unwrap_err();
    assert_eq!(busy.code(), ErrorCode::HostBusy);
    assert!(busy.message().contains("another controller, for "), "{busy}");
    // The same deployment from a connection that was cut: its lock is taken over.
    let again = remote.lock(&theirs, "another controller", Duration::ZERO).await.unwrap();
    drop((held, again));
    remote.remove(false).await.unwrap();

    let request = DeploymentRequest { tunnel_token: Some(Secret::new("hunter2$\"\\")), ..bench.request() };
    let view = bench.deploy(&request).await;
    // The image of cloudflared cannot be had in the testbed.
    assert_eq!(view.state, DeploymentState::Failed);
    assert_eq!(view.failure.as_ref().unwrap().code, ErrorCode::ImageNotFound, "{:?}", view.failure);
    assert!(!serde_json::to_string(&view).unwrap().contains("hunter2"));
    run(&connection, r#"[ ! -e "$1" ]"#, &[BASE]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn cut_connection_is_rechecked_and_stopped_controller_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let killer = bench.host.connect().await;
    let view = bench.deployments.start(&bench.request(), Origin::Assistant).await.unwrap();
    let mut views = bench.deployments.watch(&view.deployment_id).await.unwrap();
    views.wait_for(|view| view.step_is_done(StepName::Images)).await.unwrap();
    // Every session but the one that does this.
    let cut = r#"me=$PPID; while ! grep -q '^sshd' /proc/$me/comm; do me=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$me/status); done
        for pid in $(pgrep sshd-session || pgrep -f 'sshd: '); do [ "$pid" = "$me" ] || [ "$pid" = "$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$me/status)" ] || kill -9 "$pid"; done; true"#;
    let _ = killer.script(cut, &[], LIMIT).await;
    let ended = bench.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Ready, "{:?}", ended.failure);
    let again =
        ended.steps.iter().filter_map(|step| step.evidence.as_deref()).any(|text| text.contains("was cut"));
    assert!(again, "the cut was not noticed: {:?}", ended.steps);

    // As if the controller had been killed: the record says running, nothing runs.
    use cluster_core::deploy::Journal;
    let mut record = bench.journal.get(&view.deployment_id).await.unwrap().unwrap();
    record.view.state = DeploymentState::Running;
    bench.journal.put(&record).await.unwrap();
    let restarted = with_settings(
        bench.host.clone(),
        bench.settings.clone(),
        bench.journal.clone(),
        bench.cluster.clone(),
    );
    assert_eq!(restarted.deployments.resume_unfinished().await.unwrap(), 1);
    let ended = restarted.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Ready, "{:?}", ended.failure);
    bench.clean().await;

    // Killed before the upload, with a token that only the caller knew.
    record.spec.tunnel = TunnelSource::Argument;
    record.before = None;
    record.view.steps.iter_mut().for_each(|step| step.state = StepState::Pending);
    bench.journal.put(&record).await.unwrap();
    assert_eq!(restarted.deployments.resume_unfinished().await.unwrap(), 1);
    let failure = restarted.end_of(&view.deployment_id).await.failure.unwrap();
    assert!(failure.message.contains("interrupted before upload"), "{failure:?}");
    run(&bench.host.connect().await, r#"[ ! -e "$1" ]"#, &[BASE]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_person_admits_hosts_and_their_keys() {
    let bench = bench(host(0), None);
    let settings = DeploySettings { approved_hosts: vec![], known_hosts: vec![], ..bench.settings.clone() };
    let bench = with_settings(bench.host, settings, bench.journal, bench.cluster);
    let (hosts, target) = (bench.deployments.hosts(), bench.host.target());
    let refused = bench.deployments.start(&bench.request(), Origin::Assistant).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::HostNotApproved);
    assert!(refused.to_string().contains(&format!("aegis host approve {}", bench.host.ip)), "{refused}");
    let unknown = hosts.connect(&target, Origin::Person).await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::HostKeyUnknown);
    let wrong = hosts.approve(&target.host, target.port, Some("SHA256:nonsense")).await.unwrap_err();
    assert_eq!(wrong.code(), ErrorCode::HostKeyChanged);
    let approved = hosts.approve(&target.host, target.port, None).await.unwrap();
    assert_eq!(hosts.list().await.unwrap(), [approved]);
    assert!(hosts.connect(&target, Origin::Assistant).await.is_ok());
    hosts.forget(&target.host, target.port).await.unwrap();
    assert_eq!(hosts.forget(&target.host, target.port).await.unwrap_err().code(), ErrorCode::NotFound);

    let pinned = DeploymentRequest { identity: Some("pinned-elsewhere".into()), ..bench.request() };
    assert_eq!(
        bench.deployments.start(&pinned, Origin::Person).await.unwrap_err().code(),
        ErrorCode::Conflict
    );
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_user_of_the_docker_group_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = host(0).connect().await;
    run(&root, r#"install -d -m 700 -o ops "$1""#, &[BASE]).await;
    let mut host = host(0);
    host.user = "ops".into();
    let bench = bench(host, Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    let view = bench.deploy(&bench.request()).await;
    let user = run(&root, r#"docker inspect -f '{{.Config.User}}' aitheros-edge-node-1"#, &[]).await;
    bench.cluster.links.lock().await.clear();
    HostSession { connection: &root, base: BASE }.remove(false).await.unwrap();
    // A directory that stood there before stays, empty and its owner's.
    run(&root, r#"[ "$(stat -c '%U %a' -- "$1")" = 'ops 700' ] && rmdir -- "$1""#, &[BASE]).await;
    run(&root, "docker volume rm -f aitheros-edge_node_data", &[]).await;
    assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
    assert!(!user.starts_with("0:"), "{user}");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn an_alias_behind_another_host_becomes_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = (host(0), host(1));
    let config = dir.path().join("config");
    let text = format!(
        "Host bastion\n HostName {}\n User plain\nHost atlas\n HostName {}\n ProxyJump bastion\n User sudoer\nHost *\n \
         IdentityFile {}\n UserKnownHostsFile {}\n",
        near.ip,
        far.ip,
        far.key_path.display(),
        far.known_hosts_path.display()
    );
    std::fs::write(&config, text).unwrap();
    let bench = bench(far, Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let settings = DeploySettings {
        ssh_config: ConfigFile::Named(config),
        home: Some(dir.path().to_owned()),
        approved_hosts: vec!["atlas".into()],
        known_hosts: vec![],
        ..bench.settings.clone()
    };
    let bench = with_settings(bench.host, settings, bench.journal, bench.cluster);
    let bare = DeploymentRequest {
        host: "atlas".into(),
        ssh_port: None,
        ssh_user: None,
        ssh_key_path: None,
        ..bench.request()
    };
    let view = bench.deploy(&bare).await;
    bench.cluster.links.lock().await.clear();
    bench.clean().await;
    assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
    assert_eq!((view.host.as_str(), view.node_id.as_str()), ("atlas", "atlas"));
    let way = view.steps.iter().filter_map(|step| step.evidence.as_deref()).any(|text| {
        text.contains(&format!("bastion ({} port 22) > atlas ({} port 22)", near.ip, bench.host.ip))
    });
    assert!(way, "{:?}", view.steps);
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_user_with_sudo_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = host(0).connect().await;
    run(&root, r#"[ ! -e "$1" ]"#, &[BASE]).await;
    let mut host = host(0);
    host.user = "sudoer".into();
    let bench = bench(host, Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    let plan = bench.deployments.plan(&bench.request(), Origin::Assistant).await.unwrap();
    assert!(plan.can_deploy && plan.findings.is_empty(), "{:?}", plan.findings);
    run(&root, r#"[ ! -e "$1" ]"#, &[BASE]).await;
    let first = bench.deploy(&bench.request()).await;
    let user = run(&root, r#"docker inspect -f '{{.Config.User}}' aitheros-edge-node-1"#, &[]).await;
    let owners =
        run(&root, r#"cd "$1"; stat -c '%U %a %N' . run current/.env current/release.json"#, &[BASE]).await;
    println!("{owners}");
    // The link is the login's own work, in a directory that sudo made.
    let mut link = bench.cluster.links.lock().await.values().next().unwrap().state();
    let up = link.wait_for(|state| matches!(state, LinkState::Up { .. }));
    let up = tokio::time::timeout(LIMIT, up).await.map(|up| up.is_ok());
    let container = r#"docker ps -q --no-trunc --filter label=com.docker.compose.project=aitheros-edge"#;
    let before = run(&root, container, &[]).await;
    let again = bench.deploy(&bench.request()).await;
    let after = run(&root, container, &[]).await;
    // What fails is put back by sudo as well.
    let broken = stand_in_node(dir.path(), "broken", BROKEN_NODE);
    let failed = bench.upgraded(broken.clone()).deploy(&bench.request()).await;
    bench.cluster.links.lock().await.clear();
    HostSession { connection: &root, base: BASE }.remove(false).await.unwrap();
    run(&root, "docker volume rm -f aitheros-edge_node_data", &[]).await;
    let gone = bench.upgraded(broken).deploy(&bench.request()).await;
    let left = run(
        &root,
        r#"ls -d "$1" 2>/dev/null; docker ps -aq; docker volume rm -f aitheros-edge_node_data >/dev/null"#,
        &[BASE],
    )
    .await;
    assert_eq!(first.state, DeploymentState::Ready, "{:?}", first.failure);
    assert!(
        first.steps.iter().any(|step| step.evidence.as_deref().is_some_and(|text| text.contains("by sudo")))
    );
    assert!(!user.starts_with("0:"), "{user}");
    assert!(owners.lines().all(|line| line.starts_with("sudoer ")), "{owners}");
    assert!(up.is_ok(), "the link is {:?}", *link.borrow());
    assert_eq!(again.state, DeploymentState::Ready, "{:?}", again.failure);
    assert_eq!(before, after, "a redeploy that changes nothing recreates nothing");
    assert_eq!(failed.state, DeploymentState::RolledBack, "{:?}", failed.failure);
    assert!(gone.failure.as_ref().unwrap().message.contains("as it was before"), "{:?}", gone.failure);
    assert_eq!(left, "");
}
