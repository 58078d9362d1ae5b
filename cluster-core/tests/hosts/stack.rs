//! An operator's own stack, health, and models, on a real host with real Compose. Ollama is simulated.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use cluster_core::{
    deploy::{
        DeploySettings, DeploymentRequest, DeploymentState, DeploymentView, Deployments, HostAccess,
        LogsAsked, NodeOrder, PlanView, Removal, StepName, StepView, host::HostSession,
    },
    ssh::Connection,
    types::{error::ErrorCode, ids::NodeId, principal::Origin},
};

use crate::support::{GOOD_NODE, Host, LIMIT, MemoryJournal, StandInCluster, host, run, stand_in_node};

const BASE: &str = "/opt/aitheros-edge";
const DEPLOYMENT_LIMIT: Duration = Duration::from_secs(120);

/// A controller whose operator has a project, and a host.
struct Bench {
    host: Host,
    root: Connection,
    cluster: Arc<StandInCluster>,
    settings: DeploySettings,
    journal: Arc<MemoryJournal>,
    /// Directory of the project and of compiled files.
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let (host, dir) = (host(0), tempfile::tempdir().unwrap());
        let root = host.connect().await;
        run(&root, r#"[ ! -e "$1" ]"#, &[BASE]).await;
        let settings = DeploySettings {
            known_hosts: vec![host.known_hosts_path.clone()],
            key_dirs: vec![host.key_path.parent().unwrap().to_owned()],
            approved_hosts: vec!["10.*".into()],
            minimum_disk_gb: 1,
            owner: "test".into(),
            ..Default::default()
        };
        let cluster = Arc::new(StandInCluster::new(host.clone()));
        Self { host, root, cluster, settings, journal: Arc::default(), dir }
    }

    /// Makes a bench with an operator's compose file.
    async fn of_an_operator(compose: &str) -> Self {
        let mut bench = Self::new().await;
        bench.settings.compose_file = Some(bench.dir.path().join("docker-compose.yml"));
        bench.write("docker-compose.yml", compose);
        bench
    }

    fn with_a_node(mut self) -> Self {
        let binary = stand_in_node(self.dir.path(), "good", GOOD_NODE);
        self.settings.node_binaries = BTreeMap::from([(std::env::consts::ARCH.to_owned(), binary)]);
        self
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn deployments(&self) -> Deployments {
        let hosts = HostAccess::new(Arc::new(self.settings.clone()), self.journal.clone());
        Deployments::new(hosts, self.journal.clone(), self.cluster.clone())
    }

    /// Makes a request for a stack that does not join.
    fn request(&self) -> DeploymentRequest {
        DeploymentRequest {
            host: self.host.ip.clone(),
            ssh_port: Some(self.host.port.into()),
            ssh_user: Some(self.host.user.clone()),
            ssh_key_path: Some(self.host.key_path.to_string_lossy().into_owned()),
            join: Some(false),
            ..Default::default()
        }
    }

    async fn plan(&self, request: &DeploymentRequest) -> PlanView {
        self.deployments().plan(request, Origin::Assistant).await.unwrap()
    }

    async fn deploy(&self, request: &DeploymentRequest) -> DeploymentView {
        self.watch(request, |_| {}).await
    }

    async fn watch(
        &self,
        request: &DeploymentRequest,
        mut seen: impl FnMut(&DeploymentView),
    ) -> DeploymentView {
        let deployments = self.deployments();
        let started = deployments.start(request, Origin::Assistant).await.unwrap();
        let mut views = deployments.watch(&started.deployment_id).await.unwrap();
        let ended = async {
            loop {
                let view = views.borrow_and_update().clone();
                seen(&view);
                if view.state.is_final() || views.changed().await.is_err() {
                    return view;
                }
            }
        };
        let Ok(view) = tokio::time::timeout(DEPLOYMENT_LIMIT, ended).await else {
            panic!("it does not end: {:?}", deployments.get(&started.deployment_id).await.unwrap().steps);
        };
        for step in &view.steps {
            let text = step.evidence.as_deref().or(step.message.as_deref()).unwrap_or("");
            println!("{:<8} {:?} {:?} ms {text}", step.name, step.state, step.duration_ms.unwrap_or(0));
        }
        println!("{} {:?} {:?}", view.state, view.failure, view.log_tail);
        view
    }

    /// Returns the containers of the stack by service.
    async fn containers(&self) -> BTreeMap<String, String> {
        let script = r#"docker ps --no-trunc --filter label=com.docker.compose.project=aitheros-edge \
            --format '{{.Label "com.docker.compose.service"}} {{.ID}}'"#;
        let text = run(&self.root, script, &[]).await;
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, id)| (name.into(), id.into()))
            .collect()
    }

    async fn services(&self) -> Vec<String> {
        self.containers().await.into_keys().collect()
    }

    async fn logs(&self, service: &str) -> String {
        run(&self.root, r#"docker logs "aitheros-edge-$1-1" 2>&1"#, &[service]).await
    }

    async fn clean(self) {
        self.cluster.links.lock().await.clear();
        HostSession { connection: &self.root, base: BASE }.remove(false).await.unwrap();
        let script = r#"
            docker volume rm -f aitheros-edge_node_data aitheros-edge_ollama_data >/dev/null
            [ ! -e "$1" ] && [ -z "$(docker ps -aq)" ]
        "#;
        run(&self.root, script, &[BASE]).await;
    }
}

fn step(view: &DeploymentView, name: StepName) -> &StepView {
    view.steps.iter().find(|step| step.name == name).unwrap()
}

fn failure(view: &DeploymentView) -> &str {
    &view.failure.as_ref().unwrap().message
}

const TRAVELLING: &str = r#"
x-common: &common
  image: busybox:testbed
  init: true
services:
  web:
    <<: *common
    command: ["sh", "-c", "cat /www/index.html /run/secrets/password /etc/app.conf; /tools/run.sh; env; stat -c 'mode %a' /run/secrets/password; sleep 1000"]
    env_file: [app.env, {path: absent.env, required: false}]
    environment: {FROM_DOTENV: "${DOTENV}"}
    configs: [{source: app, target: /etc/app.conf}]
    secrets: [password]
    volumes:
      - ./www:/www:ro
      - {type: bind, source: tools, target: /tools, read_only: true}
      - /etc/hostname:/host/name:ro
    healthcheck: {test: ["CMD", "test", "-e", "/www/index.html"], interval: 1s}
  other:
    <<: *common
    command: ["sleep", "1000"]
    volumes: ["./other:/other:ro"]
    healthcheck: {test: ["CMD", "test", "-e", "/other/file"], interval: 1s}
configs: {app: {file: ./conf/app.conf}}
secrets: {password: {file: ./conf/password.txt}}
"#;

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn an_operators_files_travel_and_only_what_changed_is_recreated() {
    let bench = Bench::of_an_operator(TRAVELLING).await.with_a_node();
    bench.write("docker-compose.override.yml", "services:\n  web: {environment: {FROM_OVERRIDE: theirs}}\n");
    bench.write(".env", "DOTENV='of the $operator'\nAEGIS_NODE_ID=not-theirs\nCOMPOSE_PROJECT_NAME=x\n");
    bench.write("app.env", "FROM_FILE=yes\n");
    bench.write("conf/app.conf", "the config\n");
    bench.write("conf/password.txt", "hunter2-hunter2\n");
    bench.write("www/index.html", "first\n");
    bench.write("tools/run.sh", "#!/bin/sh\necho it runs\n");
    set_mode(&bench.dir.path().join("tools/run.sh"), 0o755);
    bench.write("other/file", "");
    let request = DeploymentRequest { join: None, ..bench.request() };
    let first = bench.deploy(&request).await;
    assert_eq!(first.state, DeploymentState::Ready, "{:?}", first.failure);
    let said = bench.logs("web").await;
    for expected in [
        "first",
        "hunter2-hunter2",
        "the config",
        "it runs",
        "FROM_FILE=yes",
        "FROM_DOTENV=of the $operator",
        "FROM_OVERRIDE=theirs",
        "mode 444",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let listing = run(&bench.root, r#"cd "$1" && ls -l && cat www/index.html && stat -L -c %a .env && grep -c '# Left out: COMPOSE_PROJECT_NAME' .env"#, &[BASE]).await;
    assert!(listing.contains("www -> current/www") && listing.ends_with("first\n600\n1\n"), "{listing}");

    let before = bench.containers().await;
    let again = bench.deploy(&request).await;
    assert_eq!(again.state, DeploymentState::Ready);
    assert!(step(&again, StepName::Upload).evidence.as_ref().unwrap().contains("nothing changed"));
    assert_eq!(bench.containers().await, before, "a redeploy that changes nothing recreates nothing");

    bench.write("www/index.html", "second\n");
    let plan = bench.plan(&request).await.plan;
    assert!(plan.to_string().contains("www/index.html"), "{plan}");
    let changed = bench.deploy(&request).await;
    assert_eq!(changed.state, DeploymentState::Ready);
    let after = bench.containers().await;
    assert_ne!(after["web"], before["web"]);
    assert_eq!((&after["other"], &after["node"]), (&before["other"], &before["node"]));
    assert!(bench.logs("web").await.contains("second"));

    // Many releases later, what was not recreated still has its files.
    for count in 0..6 {
        bench.write("www/index.html", &format!("{count}\n"));
        let view = bench.deploy(&request).await;
        assert_eq!(view.state, DeploymentState::Ready);
    }
    run(&bench.root, "docker exec aitheros-edge-other-1 test -e /other/file", &[]).await;
    let kept =
        run(&bench.root, r#"ls "$1/releases" | wc -l; ls "$1/releases/.files" | wc -l"#, &[BASE]).await;
    assert_eq!(kept, "5\n10\n", "one www for each kept release, and five that did not change");
    bench.clean().await;
}

/// A service that prints its secrets and ends.
const TELLS_SECRETS: &str = r#"
services:
  teller:
    image: busybox:testbed
    env_file: [app.env]
    secrets: [key]
    command: [sh, -c, 'echo "url $$DATABASE_URL key $$(cat /run/secrets/key)"; exit 3']
secrets:
  key:
    file: ./key.txt
"#;

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn values_of_env_files_and_secrets_stay_out_of_log_tails() {
    let bench = Bench::of_an_operator(TELLS_SECRETS).await;
    bench.write("app.env", "DATABASE_URL=postgres://u:hunter2@db/x\n");
    bench.write("key.txt", "k3yM4terial\n");
    let failed = bench.deploy(&bench.request()).await;
    assert_eq!(failed.state, DeploymentState::Failed, "{:?}", failed.failure);
    let tail = failed.log_tail.unwrap();
    assert!(tail.contains("url (secret) key (secret)"), "{tail}");
    bench.clean().await;
}

const STEADY: &str = r#"
services:
  web:
    image: busybox:testbed
    init: true
    environment: {VERSION: "NUMBER"}
    command: [sh, -c, 'echo "version $$VERSION"; exec sleep 1000000']
"#;

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn stack_without_a_node_is_read_rolled_back_and_removed() {
    let bench = Bench::of_an_operator(&STEADY.replace("NUMBER", "one")).await;
    let request = DeploymentRequest { identity: Some("web-1".into()), ..bench.request() };
    let first = bench.deploy(&request).await;
    assert_eq!(first.state, DeploymentState::Started, "{:?}", first.failure);
    bench.write("docker-compose.yml", &STEADY.replace("NUMBER", "two"));
    assert_eq!(bench.deploy(&request).await.state, DeploymentState::Started);

    let deployments = bench.deployments();
    let node = NodeId::parse("web-1").unwrap();
    let asked = LogsAsked::new(Vec::new(), None, None).unwrap();
    let text = deployments.logs(&node, &asked, Origin::Assistant).await.unwrap();
    assert!(text.contains("version two"), "{text}");
    assert_eq!(deployments.releases(&node, Origin::Assistant).await.unwrap().len(), 2);

    let order = || NodeOrder { node: node.clone(), lock_wait_seconds: None, idempotency_key: None };
    let ended = async |view: DeploymentView| {
        let mut views = deployments.watch(&view.deployment_id).await.unwrap();
        let ended = views.wait_for(|view| view.state.is_final());
        tokio::time::timeout(DEPLOYMENT_LIMIT, ended).await.unwrap().unwrap().clone()
    };
    let back = ended(deployments.roll_back(order(), None, Origin::Assistant).await.unwrap()).await;
    assert_eq!(back.state, DeploymentState::Started, "{:?}", back.failure);
    assert_eq!(back.release, Some(first.deployment_id));
    assert!(bench.logs("web").await.contains("version one"));

    let removal = Removal::new(false, Duration::ZERO, false).unwrap();
    let gone = ended(deployments.remove(order(), removal, Origin::Assistant).await.unwrap()).await;
    assert_eq!(gone.state, DeploymentState::Removed, "{:?}", gone.failure);
    run(&bench.root, r#"[ ! -e "$1" ] && [ -z "$(docker ps -aq)" ]"#, &[BASE]).await;
    let again = deployments.remove(order(), removal, Origin::Assistant).await.unwrap_err();
    assert_eq!(again.code(), ErrorCode::NotFound);
    bench.clean().await;
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

const CHOICE: &str = r#"
services:
  app: {image: "busybox:testbed", init: true, command: [sleep, "1000"], depends_on: [store]}
  store: {image: "busybox:testbed", init: true, command: [sleep, "1000"]}
  side: {image: "busybox:testbed", init: true, command: [sleep, "1000"]}
  debug: {image: "busybox:testbed", init: true, command: [sleep, "1000"], profiles: [debug]}
"#;

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn services_and_profiles_are_chosen_and_nothing_need_join() {
    let bench = Bench::of_an_operator(CHOICE).await;
    let only = |services: &str| DeploymentRequest { services: Some(services.into()), ..bench.request() };
    let unknown = bench.deploy(&only("nginx")).await;
    assert_eq!(unknown.state, DeploymentState::Failed);
    let remedy = unknown.failure.as_ref().unwrap().remedy.clone().unwrap();
    assert!(remedy.contains("app, debug, side, store"), "{remedy}");

    let all = bench.deploy(&bench.request()).await;
    assert_eq!(all.state, DeploymentState::Started, "{:?}", all.failure);
    assert!(all.steps.iter().all(|step| !matches!(step.name, StepName::Join | StepName::Proof)));
    assert!(bench.cluster.admitted.lock().unwrap().is_empty());
    assert_eq!(bench.services().await, ["app", "side", "store"]);
    let before = bench.containers().await;

    let profiles = DeploymentRequest { profiles: vec!["debug".into()], ..bench.request() };
    assert_eq!(bench.deploy(&profiles).await.state, DeploymentState::Started);
    assert_eq!(bench.services().await, ["app", "debug", "side", "store"]);

    let view = bench.deploy(&only("app")).await;
    assert_eq!(view.state, DeploymentState::Started);
    let after = bench.containers().await;
    assert_eq!(bench.services().await, ["app", "store"], "what is not asked for any more is gone");
    assert_eq!((&after["app"], &after["store"]), (&before["app"], &before["store"]));
    bench.clean().await;
}

const AS_COMPOSE_READS_IT: &str = r#"
x-route: "^/api$"
services:
  web:
    image: busybox:testbed
    build: .
    init: true
    env_file: ./.env
    environment: {PROJECT: "${COMPOSE_PROJECT_NAME:?}", GIVEN: "${DOCKER_APP_KEY:?}"}
    labels: {rule: "^/api$"}
    ports: ["18100-18105:80"]
    volumes: ["${PWD}/a.conf:/etc/a.conf:ro", "./.env:/env:ro"]
    depends_on: {cache: {condition: service_started, required: false}}
    command: ["sh", "-c", "echo $$PROJECT $$GIVEN $$LD_APP; cat /etc/a.conf; grep LD_APP /env; sleep 1000"]
  cache: {image: "busybox:testbed", command: [sleep, "1000"], profiles: [extras]}
  lint: {build: ., profiles: [dev]}
  batch: {image: "busybox:testbed", command: [sleep, "1000"], deploy: {replicas: 0}}
"#;

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn stack_runs_as_compose_reads_it() {
    let mut bench = Bench::of_an_operator(AS_COMPOSE_READS_IT).await;
    bench.write(".env", "DOCKER_APP_KEY=given\nLD_APP=ends-with$\n");
    bench.write("a.conf", "from the file\n");
    let view = bench.deploy(&bench.request()).await;
    assert_eq!(view.state, DeploymentState::Started, "{:?}", view.failure);
    assert_eq!(bench.services().await, ["web"]);
    let log = bench.logs("web").await;
    assert!(log.starts_with("aitheros-edge given ends-with$\nfrom the file\nLD_APP="), "{log}");
    let before = bench.containers().await;
    assert_eq!(bench.deploy(&bench.request()).await.state, DeploymentState::Started);
    assert_eq!(bench.containers().await, before, "nothing changed, nothing is recreated");
    bench.write(".env", "DOCKER_APP_KEY=given\nLD_APP=other\n");
    assert_eq!(bench.deploy(&bench.request()).await.state, DeploymentState::Started);
    assert!(bench.logs("web").await.starts_with("aitheros-edge given other\n"));

    let actions = |plan: PlanView| {
        plan.plan.images.into_iter().map(|image| format!("{:?}", image.action)).collect::<Vec<_>>()
    };
    assert_eq!(actions(bench.plan(&bench.request()).await), ["Present"]);
    bench.settings.always_pull = true;
    assert_eq!(actions(bench.plan(&bench.request()).await), ["Pull"]);
    bench.settings.always_pull = false;

    bench.write("docker-compose.yml", "services: {app: {image: 'shop/web:${TAG}'}}\n");
    let plan = bench.plan(&bench.request()).await;
    let codes: Vec<&str> = plan.findings.iter().map(|finding| finding.code.as_str()).collect();
    assert!(!plan.can_deploy && codes.contains(&"image") && codes.contains(&"variables"), "{codes:?}");
    bench.clean().await;
}

const WITH_TAGS: &str = r#"
include: [sub/compose.yml]
services:
  web:
    extends: {file: base/base.yml, service: base}
    env_file: dev.env
    ports: ["18080:80"]
    volumes: ["./src:/src", "conf:/v"]
    command: ["sh", "-c", "cat /v/a; echo $$FROM_BASE; ls -d /src 2>&1; sleep 1000"]
  mail: {image: "busybox:testbed", ports: ["18080:80"]}
volumes: {conf: {driver: local, driver_opts: {type: none, o: bind, device: "${PWD}/v"}}}
"#;
const TAGS: &str = r#"
services:
  web:
    env_file: !override [base/own.env]
    ports: !override ["127.0.0.1:18081:80"]
    volumes: !override ["conf:/v"]
  mail: !reset null
"#;

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn tags_includes_and_bound_volumes_are_composes() {
    let bench = Bench::of_an_operator(WITH_TAGS).await;
    bench.write("docker-compose.override.yml", TAGS);
    bench.write(
        "base/base.yml",
        "services: {base: {image: 'busybox:testbed', init: true, env_file: own.env}}\n",
    );
    bench.write("base/own.env", "FROM_BASE=a-value-of-base\n");
    bench.write("sub/compose.yml", "services: {sub: {image: 'busybox:testbed', init: true, command: [sleep, '1000'], volumes: ['./conf:/conf:ro']}}\n");
    bench.write("sub/conf/x", "");
    bench.write("v/a", "in the bound volume\n");
    let view = bench.deploy(&bench.request()).await;
    assert_eq!(view.state, DeploymentState::Started, "{:?}", view.failure);
    assert_eq!(bench.services().await, ["sub", "web"]);
    let log = bench.logs("web").await;
    assert!(log.starts_with("in the bound volume\na-value-of-base\nls: /src"), "{log}");
    let ports = run(&bench.root, "docker port aitheros-edge-web-1", &[]).await;
    assert_eq!(ports.trim(), "80/tcp -> 127.0.0.1:18081");

    bench.write("docker-compose.override.yml", "services: {web: {prots: [1]}}\n");
    let error = bench.deployments().plan(&bench.request(), Origin::Assistant).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ConfigInvalid);
    let told = error.message();
    assert!(told.contains("prots") && !told.contains("aegis-compose"), "{told}");
    let left = run(
        &bench.root,
        "ls -d /dev/shm/aegis-compose* /run/user/0/aegis-compose* /tmp/aegis-compose* 2>/dev/null || :",
        &[],
    );
    assert_eq!(left.await, "", "nothing that Compose read stays");
    // The bound volume's data too.
    HostSession { connection: &bench.root, base: BASE }.remove(true).await.unwrap();
    bench.clean().await;
}

const HEALTH: &str = r#"
services:
  once: {image: "busybox:testbed", command: ["true"]}
  slow:
    image: busybox:testbed
    init: true
    command: ["sh", "-c", "sleep 4; touch /tmp/up; sleep 1000"]
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/up"], interval: 1s, start_period: 60s}
  # Gives up until the slow one is there, as many do.
  impatient:
    image: busybox:testbed
    init: true
    restart: always
    command: ["sh", "-c", "nslookup slow >/dev/null && [ -e /flag/up ] || { mkdir -p /flag; touch /flag/up; exit 1; }; sleep 1000"]
"#;

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_slow_start_a_one_shot_and_a_crash_loop_are_told_apart() {
    let bench = Bench::of_an_operator(HEALTH).await;
    let good = bench.deploy(&bench.request()).await;
    assert_eq!(good.state, DeploymentState::Started, "{:?}", good.failure);
    let evidence = step(&good, StepName::Health).evidence.clone().unwrap();
    assert!(evidence.contains("once exited 0") && evidence.contains("slow healthy"), "{evidence}");
    assert!(evidence.contains("impatient runs for") && evidence.contains("restarted once"), "{evidence}");

    let looping = format!(
        "{HEALTH}  bad: {{image: 'busybox:testbed', restart: always, command: ['sh', '-c', 'echo my last words; exit 3']}}\n"
    );
    bench.write("docker-compose.yml", &looping);
    let view = bench.deploy(&bench.request()).await;
    assert_eq!(view.state, DeploymentState::RolledBack);
    assert!(
        failure(&view).contains("service bad failed: does not stay up: it exited 3, restarted"),
        "{}",
        failure(&view)
    );
    assert!(view.log_tail.as_ref().unwrap().contains("my last words"));

    bench.write("docker-compose.yml", &HEALTH.replace("sleep 4;", "sleep 600;"));
    let view = bench.deploy(&DeploymentRequest { health_timeout_seconds: Some(10), ..bench.request() }).await;
    assert_eq!(view.state, DeploymentState::RolledBack);
    assert!(failure(&view).contains("service slow is not well after 10 s"), "{}", failure(&view));
    bench.clean().await;
}

/// Loads the simulated Ollama as an image with the stack's name.
async fn load_ollama(bench: &Bench) {
    let binary = stand_in_node(bench.dir.path(), "ollama", include_str!("stand_ins/ollama.rs"));
    let content = fs::read(binary).unwrap();
    let script = r#"
        set -e
        dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
        mkdir "$dir/bin"; cat > "$dir/bin/ollama"; chmod 755 "$dir/bin" "$dir/bin/ollama"
        tar -C "$dir" -c bin | docker import --change 'ENV PATH=/bin' --change 'ENTRYPOINT ["/bin/ollama"]' \
            --change 'CMD ["serve"]' - ollama/ollama:latest
    "#;
    let output =
        bench.root.script_with_input(script, &[], std::io::Cursor::new(content), LIMIT).await.unwrap();
    assert!(output.success(), "{output:?}");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn models_are_pulled_with_progress_and_an_unknown_one_is_told() {
    let mut bench = Bench::new().await;
    load_ollama(&bench).await;
    let request = bench.request();
    let with = |models: &[&str]| DeploymentRequest {
        models: models.iter().map(|model| (*model).to_owned()).collect(),
        ..request.clone()
    };
    let mut progress = Vec::new();
    let view = bench
        .watch(&with(&["tiny", "big:1b"]), |view| {
            let step = view.steps.iter().find(|step| step.name == StepName::Models).unwrap();
            progress.extend(step.message.clone());
        })
        .await;
    assert_eq!(view.state, DeploymentState::Started, "{:?}", view.failure);
    let evidence = step(&view, StepName::Models).evidence.clone().unwrap();
    assert_eq!(evidence, "pulled tiny (4 MB), pulled big:1b (2000 MB)");
    assert!(
        progress.iter().any(|text| text.starts_with("pulling big:1b: ") && text.contains("% of 2000 MB")),
        "{progress:?}"
    );

    let view = bench.deploy(&with(&["tiny"])).await;
    assert_eq!(step(&view, StepName::Models).evidence.as_deref(), Some("tiny was there"));

    let view = bench.deploy(&with(&["nonsense:7b"])).await;
    assert!(
        failure(&view).contains("cannot pull model nonsense:7b: pull model manifest: file does not exist"),
        "{}",
        failure(&view)
    );
    HostSession { connection: &bench.root, base: BASE }.remove(false).await.unwrap();

    // An operator's Ollama that publishes no port is asked by its own command.
    bench.settings.compose_file = Some(bench.dir.path().join("docker-compose.yml"));
    bench.write(
        "docker-compose.yml",
        "services:\n  llm: {image: ollama/ollama, healthcheck: {test: [CMD, ollama, list], interval: 1s}}\n",
    );
    let view = bench.deploy(&with(&["tiny"])).await;
    assert_eq!(step(&view, StepName::Models).evidence.as_deref(), Some("pulled tiny"));
    let view = bench.deploy(&with(&["tiny", "nonsense"])).await;
    assert!(
        failure(&view).contains("cannot pull model nonsense: Error: pull model manifest"),
        "{}",
        failure(&view)
    );
    let root = bench.host.connect().await;
    bench.clean().await;
    run(&root, "docker image rm ollama/ollama:latest", &[]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn what_was_changed_by_hand_is_shown_and_sent_again() {
    let compose = "services:\n  web: {image: 'busybox:testbed', init: true, command: [sleep, '1000'], volumes: ['./www:/www:ro'], \
                   healthcheck: {test: ['CMD', 'test', '-e', '/www/index.html'], interval: 1s}}\n";
    let bench = Bench::of_an_operator(compose).await;
    bench.write("www/index.html", "ours\n");
    let first = bench.deploy(&bench.request()).await;
    assert_eq!(first.state, DeploymentState::Started, "{:?}", first.failure);
    let clean = bench.plan(&bench.request()).await;
    assert!(clean.plan.drift.is_empty() && clean.findings.is_empty(), "{:?}", clean.findings);

    let by_hand = r#"
        cd "$1" && echo by hand >> www/index.html && echo '# by hand' >> docker-compose.yml
        docker stop aitheros-edge-web-1
        docker run -d --label com.docker.compose.project=aitheros-edge --label com.docker.compose.service=stray \
            --label com.docker.compose.oneoff=False busybox:testbed sleep 1000
    "#;
    run(&bench.root, by_hand, &[BASE]).await;
    let view = bench.plan(&bench.request()).await;
    let drift: Vec<String> = view.plan.drift.iter().map(ToString::to_string).collect();
    assert_eq!(
        drift[..2],
        ["file docker-compose.yml was changed on the host", "file www/index.html was changed on the host"]
    );
    assert!(drift[2].starts_with("service web does not run: exited"), "{drift:?}");
    assert_eq!(drift[3..], ["service stray is not of the release"]);
    assert_eq!(view.findings.iter().filter(|finding| finding.code == "drift").count(), 4);
    assert!(view.can_deploy && view.plan.digest != clean.plan.digest);

    let mended = bench.deploy(&bench.request()).await;
    assert_eq!(mended.state, DeploymentState::Started, "{:?}", mended.failure);
    assert_eq!(run(&bench.root, "docker exec aitheros-edge-web-1 cat /www/index.html", &[]).await, "ours\n");
    assert_eq!(bench.services().await, ["web"]);
    assert!(bench.plan(&bench.request()).await.plan.drift.is_empty());
    bench.clean().await;
}
