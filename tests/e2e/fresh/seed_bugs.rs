//! The three bugs that the first seed document tells of, as acceptance tests.

use serde_json::json;

use crate::support::{
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, fresh},
    mcp::{Client, Era},
    testbed::own_engine,
    work::{deploy_ready, deployment_of, run, script, with},
};

const PROJECT: &str = "label=com.docker.compose.project=aitheros-edge";
const LLM_URL: &str = "http://primary-host:8150";

#[tokio::test]
async fn deployment_runs_on_its_own_host_as_stack_with_llm() {
    let Fresh { hosts, _machines } = fresh().await;
    let [host, other] = &hosts;
    // This machine's engine may serve others meanwhile: their executions are no business of ours.
    let containers_here = || {
        let all = own_engine(&["ps", "-a", "--format", "{{.ID}} {{.Names}}"]);
        let ours = |line: &&str| !line.contains("-exec-") || line.contains(ONE);
        all.lines().filter(ours).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = containers_here();
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    let mut client = Client::stdio(&controller, Era::Session, "seed-bugs").await;
    controller.approve(host).await;
    let arguments = with(deployment_of(host, ONE, &["edge"]), json!({"remote_llm_url": LLM_URL}));
    let view = deploy_ready(&mut client, arguments).await;
    assert_eq!(view["host"], host.ip);

    // The first: the target. Nothing came to this machine or to any other than the one named.
    assert_eq!(containers_here(), before, "something was deployed to the controller's own machine");
    assert_eq!(own_engine(&["ps", "-aq", "--filter", PROJECT]), "");
    assert_eq!(other.traces(), "");

    // The second: a compose stack, and nothing beside it.
    let stack = host.sh(&format!(
        "docker ps --filter {PROJECT} --format '{{{{.Label \"com.docker.compose.service\"}}}} {{{{.Status}}}}'"
    ));
    let services: Vec<&str> = stack.lines().collect();
    assert!(services.len() == 1 && services[0].starts_with("node Up"), "{stack}");
    let count = |filter: &str| host.sh(&format!("docker ps -aq {filter} | wc -l"));
    assert_eq!(count(""), count(&format!("--filter {PROJECT}")), "a container outside the stack");
    let projects = host.sh("docker compose ls --format json");
    assert!(projects.contains("\"Name\":\"aitheros-edge\""), "{projects}");

    // The third: the address of the LLM, in the file, in the node and in what runs on the node.
    let env_file = host.sh("cat $(docker compose ls --format json | sed 's/.*ConfigFiles\":\"//; s/[\",].*//; s|/[^/]*$||')/.env");
    assert!(env_file.contains(&format!("AEGIS_REMOTE_LLM_URL=\"{LLM_URL}\"")), "{env_file}");
    let node_env = host.sh(&format!(
        "docker inspect --format '{{{{range .Config.Env}}}}{{{{println .}}}}{{{{end}}}}' $(docker ps -q --filter {PROJECT})"
    ));
    assert!(node_env.lines().any(|line| line == format!("AEGIS_REMOTE_LLM_URL={LLM_URL}")), "{node_env}");
    let ended = run(&mut client, script("echo $AEGIS_REMOTE_LLM_URL", &["edge"])).await;
    assert_eq!(ended.stdout, format!("{LLM_URL}\n"));

    // A node's name is no way to its host: a host is what ssh would take for one.
    let refusal = client
        .refused("deploy_edge_node", with(deployment_of(host, "another", &[]), json!({"host": ONE})))
        .await;
    assert!(refusal.contains(ONE), "{refusal}");
    for here in ["localhost", "127.0.0.1", "0", "::1", "::ffff:127.0.0.1", "2130706433", "0x7f.1", "127.1"] {
        let arguments = with(deployment_of(host, "here", &[]), json!({"host": here}));
        let refusal = client.refused("deploy_edge_node", arguments).await;
        assert!(refusal.contains("host"), "{here}: {refusal}");
    }
    assert_eq!(containers_here(), before, "something was deployed to the controller's own machine");
}
