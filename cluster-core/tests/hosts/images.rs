//! Images that reach a host from a private registry (Debian's own, on the host) and from this machine's
//! engine, and secrets by name on their way there.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use cluster_core::{
    config::registries::RegistryLogin,
    deploy::{
        DeploySettings, DeploymentRequest, DeploymentState, DeploymentView, TunnelSource, host::HostSession,
        model::plan::ImageAction,
    },
    engine::Engine,
    fs::SecretReference,
    ssh::Connection,
    types::{
        error::ErrorCode,
        principal::Origin,
        registry::Registry,
        secret::{Secret, SecretName},
    },
};

use crate::{
    bench::{BASE, Bench, bench, with_settings},
    support::{GOOD_NODE, Host, host, run, stand_in_node, until},
};

const USER: &str = "deployer";
const PASSWORD: &str = "marker-registry $\"\\ 61f";
const SECRET: &str = "registry-password";
/// All places where a login may lie while a pull runs.
const LOGINS: &str = "ls -d /dev/shm/aegis-login.* /run/aegis-login.* /tmp/aegis-login.* 2>/dev/null";
const IN_TIME: Duration = Duration::from_secs(20);

fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

/// Starts the registry; the answer is the image that it has.
fn registry(host: &Host) -> String {
    let script = std::env::var("AEGIS_TESTBED").expect("AEGIS_TESTBED names the testbed script");
    let mut child = Command::new(script)
        .args(["registry", &host.container, USER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(PASSWORD.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A host that is used with changed settings.
fn with(bench: &Bench, change: impl FnOnce(&mut DeploySettings)) -> Bench {
    let mut settings = bench.settings.clone();
    change(&mut settings);
    with_settings(bench.host.clone(), settings, bench.journal.clone(), bench.cluster.clone())
}

fn logged_in(bench: &Bench, image: &str, password: &str) -> Bench {
    bench.journal.secrets.lock().unwrap().insert(name(SECRET), Secret::new(password));
    with(bench, |settings| {
        let password = SecretReference::Named(name(SECRET));
        let login = RegistryLogin { username: USER.to_owned(), password };
        settings.registries = [(Registry::of(image), login)].into();
    })
}

fn request_of(bench: &Bench, image: &str) -> DeploymentRequest {
    DeploymentRequest { image: Some(image.to_owned()), services: Some("node".into()), ..bench.request() }
}

fn failure(view: &DeploymentView) -> String {
    let failure = view.failure.as_ref().unwrap_or_else(|| panic!("it is {}", view.state));
    assert_eq!(failure.code, ErrorCode::ImageNotFound, "{failure:?}");
    format!("{} {}", failure.message, failure.remedy.as_deref().unwrap_or_default())
}

async fn is_true(connection: &Connection, script: &'static str) -> bool {
    connection.script(script, &[], IN_TIME).await.unwrap().success()
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn private_image_is_pulled_only_with_the_configured_login() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(0), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let root = bench.host.connect().await;
    let image = registry(&bench.host);
    let request = request_of(&bench, &image);
    let key = "spec.deploy.registries.\"127.0.0.1:5000\"";

    let said = failure(&bench.deploy(&request).await);
    assert!(said.contains("127.0.0.1:5000 refuses") && said.contains("without a login"), "{said}");
    assert!(said.contains(key), "{said}");
    let wrong = logged_in(&bench, &image, "marker-wrong-7d0").deploy(&request).await;
    let said = failure(&wrong);
    assert!(said.contains("to the configured login") && said.contains(key), "{said}");
    let nameless = logged_in(&bench, &image, PASSWORD);
    nameless.journal.secrets.lock().unwrap().clear();
    let unknown = nameless.deploy(&request).await;
    let said = unknown.failure.unwrap();
    assert_eq!(said.code, ErrorCode::NotFound);
    assert!(said.message.contains(key) && said.message.contains(SECRET), "{said:?}");

    let right = logged_in(&bench, &image, PASSWORD).deploy(&request).await;
    assert_eq!(right.state, DeploymentState::Ready, "{:?}", right.failure);
    run(&root, r#"[ -n "$(docker ps -q --filter "ancestor=$1")" ]"#, &[&image]).await;
    for view in [&wrong, &right] {
        let text = serde_json::to_string(view).unwrap();
        assert!(!text.contains("marker-"), "{text}");
    }
    assert!(!is_true(&root, LOGINS).await);
    run(
        &root,
        r#"! grep -rqF -e marker-registry -e "$2" "$1" /root /dev/shm /tmp /run 2>/dev/null"#,
        &[BASE, &base64_of(&format!("{USER}:{PASSWORD}"))],
    )
    .await;
    bench.clean().await;
    run(&root, r#"pkill -x docker-registry; docker rmi "$1" >/dev/null; rm -rf /srv/registry"#, &[&image])
        .await;
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_login_is_gone_from_the_host_when_its_connection_is_cut() {
    let host = host(0);
    let (root, victim) = (host.connect().await, host.connect().await);
    run(&root, r#"mkdir -p -m 700 "$1""#, &[BASE]).await;
    // A registry that takes the connection and never answers: the pull stays in the middle.
    run(
        &root,
        r#"setsid perl -MIO::Socket::INET -e 'my $l = IO::Socket::INET->new(LocalAddr => "127.0.0.1:5001", Listen => 9, ReuseAddr => 1) or die; print "$$\n"; close STDOUT; my @held; while (my $c = $l->accept) { push @held, $c }' </dev/null 2>/dev/null >/tmp/aegis-test-hang & 
           n=0; until [ -s /tmp/aegis-test-hang ] || [ $n -ge 100 ]; do n=$((n + 1)); sleep 0.05; done; [ -s /tmp/aegis-test-hang ]"#,
        &[],
    )
    .await;
    let login = Secret::new(r#"{"auths":{"127.0.0.1:5001":{"auth":"bWFya2VyOm1hcmtlcg=="}}}"#);
    // Once as a cable is pulled, once as a step is given up.
    for cut in [true, false] {
        let victim = if cut { victim.clone() } else { root.clone() };
        let pulling = tokio::spawn({
            let (victim, login) = (victim.clone(), login.clone());
            async move {
                let remote = HostSession { connection: &victim, base: BASE };
                remote.pull("127.0.0.1:5001/x/y:1", Some(&login), IN_TIME).await
            }
        });
        until("the login is on the host", async || {
            is_true(&root, "cat /dev/shm/aegis-login.*/config.json && pgrep -f '^docker --config'").await
        })
        .await;
        assert!(!pulling.is_finished());
        if cut {
            let parent = r#"pid=$(pgrep -f '^docker --config' | head -n 1)
                while ! grep -q '^sshd' "/proc/$pid/comm"; do pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status"); done; kill -9 "$pid""#;
            run(&root, parent, &[]).await;
            assert_eq!(pulling.await.unwrap().unwrap_err().code(), ErrorCode::HostUnreachable);
        } else {
            pulling.abort();
        }
        until("the login is gone", async || !is_true(&root, LOGINS).await).await;
        until("the pull has ended", async || !is_true(&root, "pgrep -f '^docker --config'").await).await;
    }
    run(&root, r#"kill "$(cat /tmp/aegis-test-hang)"; rm -f /tmp/aegis-test-hang; rm -rf "$1""#, &[BASE])
        .await;
}

/// An image of this machine's engine, gone when this is.
struct Made(String);

impl Made {
    fn new(reference: &str) -> Self {
        Self(reference.to_owned())
    }

    /// From busybox, with a file that makes it another image.
    fn make(&self, content: &str) {
        self.make_with(content, "trap exit TERM; sleep 86400 & wait");
    }

    fn make_with(&self, content: &str, command: &str) {
        let script = r#"set -e; file=$(mktemp); printf %s "$2" >"$file"; container=$(docker create busybox:testbed)
            docker cp "$file" "$container:/content"; rm "$file"
            docker commit --change "CMD [\"sh\",\"-c\",\"$3\"]" "$container" "$1"; docker rm "$container""#;
        let made = Command::new("sh").args(["-c", script, "sh", &self.0, content, command]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn local_image_is_pushed_only_when_it_changed() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(0), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let root = bench.host.connect().await;
    let bench = with(&bench, |settings| settings.engine = Some(Engine::new(None).unwrap()));
    let made = Made::new(&format!("aegis-test-{}/agent:1", std::process::id()));
    made.make("first");
    let request = request_of(&bench, &made.0);
    let content = async || {
        let script = r#"docker exec aitheros-edge-aithernode-1 cat /content"#;
        run(&root, script, &[]).await
    };
    let actions = async || {
        let plan = bench.deployments.plan(&request, Origin::Assistant).await.unwrap().plan;
        let image = plan.images.iter().find(|image| image.reference == made.0).unwrap();
        (image.action, image.content.is_some())
    };
    let evidence = |view: &DeploymentView| {
        assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
        let step = view.steps.iter().find(|step| step.name.to_string() == "images").unwrap();
        let text = step.evidence.clone().unwrap();
        println!("{text}");
        text
    };
    assert_eq!(actions().await, (ImageAction::Push, true));
    let first = evidence(&bench.deploy(&request).await);
    assert!(first.contains(&format!("sent {}", made.0)), "{first}");
    assert_eq!(content().await, "first");

    assert_eq!(actions().await, (ImageAction::Present, false));
    let again = evidence(&bench.deploy(&request).await);
    assert!(again.starts_with("all "), "{again}");

    made.make("second");
    assert_eq!(actions().await, (ImageAction::Push, true));
    let changed = evidence(&bench.deploy(&request).await);
    assert!(changed.contains(&format!("sent {}", made.0)), "{changed}");
    assert_eq!(content().await, "second");

    // One that does not run: the one before is what the name means again.
    made.make_with("third", "exit 3");
    let failed =
        bench.deploy(&DeploymentRequest { health_timeout_seconds: Some(20), ..request.clone() }).await;
    assert_eq!(failed.state, DeploymentState::RolledBack, "{:?}", failed.failure);
    assert_eq!(content().await, "second");

    // Gone from here, it is the host's own affair again.
    drop(made);
    let left = evidence(&bench.deploy(&request).await);
    assert!(left.starts_with("all "), "{left}");
    bench.clean().await;
    run(&root, r#"docker rmi -f $(docker images -q --filter "reference=aegis-test-*/agent") >/dev/null; docker image prune -f >/dev/null"#, &[]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn named_secret_survives_restart_and_unknown_secret_is_an_error() {
    const TOKEN: &str = "marker-token-$\"\\-83a";
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(0), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let root = bench.host.connect().await;
    let request = DeploymentRequest {
        tunnel_token: Some(Secret::new("secret:tunnel")),
        services: Some("node".into()),
        ..bench.request()
    };
    bench.journal.secrets.lock().unwrap().insert(name("other"), Secret::new("x"));
    for error in [
        bench.deployments.start(&request, Origin::Assistant).await.unwrap_err(),
        bench.deployments.plan(&request, Origin::Assistant).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), ErrorCode::NotFound);
        assert!(error.to_string().contains("tunnel") && !error.to_string().contains("other"), "{error}");
    }

    bench.journal.secrets.lock().unwrap().insert(name("tunnel"), Secret::new(TOKEN));
    let plan = bench.deployments.plan(&request, Origin::Assistant).await.unwrap().plan;
    assert_eq!(plan.tunnel_token_from, TunnelSource::Secret(name("tunnel")));
    assert!(!serde_json::to_string(&plan).unwrap().contains("marker"));

    // A host that nobody admitted gets neither this token nor one that was found, and is told of nothing.
    let stranger = with(&bench, |settings| {
        settings.approved_hosts = Vec::new();
        settings.environment_tunnel_token = Some(Secret::new(TOKEN));
    });
    let found = DeploymentRequest { services: Some("node".into()), ..stranger.request() };
    let nameless = DeploymentRequest { tunnel_token: Some(Secret::new("secret:nobody")), ..found.clone() };
    for request in [&request, &found, &nameless] {
        let refused = stranger.deployments.start(request, Origin::Assistant).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::HostNotApproved);
        let refused = stranger.deployments.plan(request, Origin::Assistant).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::HostNotApproved);
    }

    // Interrupted before anything was done: it goes on with the secret, which is found again.
    run(&root, "docker tag busybox:testbed cloudflare/cloudflared:latest", &[]).await;
    use cluster_core::deploy::Journal as _;
    let view = bench.deployments.start(&request, Origin::Assistant).await.unwrap();
    let record = bench.journal.get(&view.deployment_id).await.unwrap().unwrap();
    bench.deployments.cancel(&view.deployment_id).await.unwrap();
    bench.end_of(&view.deployment_id).await;
    bench.clean().await;
    bench.journal.put(&record).await.unwrap();
    let restarted = with(&bench, |_| {});
    assert_eq!(restarted.deployments.resume_unfinished().await.unwrap(), 1);
    let mut views = restarted.deployments.watch(&view.deployment_id).await.unwrap();
    let uploaded = async {
        let done = |view: &DeploymentView| view.state.is_final() || is_uploaded(view);
        is_uploaded(&views.wait_for(done).await.unwrap().clone())
    };
    assert!(
        tokio::time::timeout(IN_TIME, uploaded).await.unwrap(),
        "{:?}",
        restarted.deployments.get(&view.deployment_id).await
    );
    let env = run(&root, r#"cat "$1/.env""#, &[BASE]).await;
    assert!(env.contains("marker-token") && env.contains("83a"), "{env}");
    restarted.deployments.cancel(&view.deployment_id).await.unwrap();
    restarted.end_of(&view.deployment_id).await;
    bench.clean().await;
    run(&root, "docker rmi cloudflare/cloudflared:latest >/dev/null", &[]).await;
}

fn is_uploaded(view: &DeploymentView) -> bool {
    view.step_is_done(cluster_core::deploy::StepName::Upload)
}
