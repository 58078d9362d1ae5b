//! A client of the published protocol, generated from its tables alone, runs registered agents.

use std::time::Duration;

use aegis_proto::published::aegis::runtime::{
    v1 as theirs,
    v1::{aegis_runtime_client::AegisRuntimeClient, execution_event::Event},
};
use cluster_core::{
    controller::access::AccessTokenOrder,
    types::{
        execution::filter::ExecutionFilter,
        ids::{AccessTokenName, ExecutionId},
        scope::Scope,
    },
};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use crate::support::{Cluster, OPERATOR_TOKEN, reason};

const ENGINE: &str = "role: hybrid";
const LIMIT: Duration = Duration::from_secs(60);

fn manifest(script: &str) -> String {
    format!(
        "apiVersion: 100monkeys.ai/v1\nkind: Agent\nmetadata: {{name: greeter}}\nspec:\n  \
         runtime: {{image: 'busybox:testbed'}}\n  command: [sh, -c]\n  args: ['{script}']\n"
    )
}

fn asks(agent_id: &str, input: &str) -> theirs::ExecuteAgentRequest {
    theirs::ExecuteAgentRequest { agent_id: agent_id.into(), input: input.into(), ..Default::default() }
}

fn with(
    mut request: Request<theirs::ExecuteAgentRequest>,
    pairs: &[(&'static str, &str)],
) -> Request<theirs::ExecuteAgentRequest> {
    for (key, value) in pairs {
        request.metadata_mut().insert(*key, value.parse().unwrap());
    }
    request
}

fn bearing(request: theirs::ExecuteAgentRequest) -> Request<theirs::ExecuteAgentRequest> {
    let bearer = format!("Bearer {OPERATOR_TOKEN}");
    with(Request::new(request), &[("authorization", &bearer)])
}

async fn client(cluster: &Cluster) -> AegisRuntimeClient<Channel> {
    AegisRuntimeClient::connect(cluster.endpoint()).await.unwrap()
}

async fn events(mut stream: Streaming<theirs::ExecutionEvent>) -> Result<Vec<Event>, Status> {
    let mut events = Vec::new();
    let read = async {
        // Our own kinds have no meaning here, and come as an event without one.
        while let Some(event) = stream.message().await? {
            events.extend(event.event);
        }
        Ok::<(), Status>(())
    };
    tokio::time::timeout(LIMIT, read).await.expect("the stream ends")?;
    Ok(events)
}

fn output(events: &[Event]) -> String {
    let parts = events.iter().filter_map(|event| match event {
        Event::IterationOutput(output) => Some(output.output.as_str()),
        _ => None,
    });
    parts.collect()
}

#[tokio::test]
async fn who_may_call_and_what_is_refused() {
    let cluster = Cluster::start().await;
    cluster.core().apply_agent(&manifest("true")).await.unwrap();
    let mut client = client(&cluster).await;
    let ask = || asks("greeter", "");
    let wrong = with(Request::new(ask()), &[("authorization", "Bearer guessed")]);
    for stranger in [Request::new(ask()), wrong] {
        let refused = client.execute_agent(stranger).await.unwrap_err();
        assert_eq!(reason(&refused), "Unauthenticated");
    }
    for (request, code, words) in [
        (asks("nobody", ""), "NotFound", "nobody"),
        (asks("greeter@7", ""), "NotFound", "greeter@7"),
        (asks("", ""), "InvalidArgument", "agent_id"),
        (asks("No Agent", ""), "InvalidArgument", "agent"),
        (theirs::ExecuteAgentRequest { context_json: "[1]".into(), ..ask() }, "NotOffered", "context_json"),
        // This controller has no node at all, and none can be waited for.
        (ask(), "NoNodeFits", "no node"),
    ] {
        let refused = client.execute_agent(bearing(request)).await.unwrap_err();
        assert_eq!(reason(&refused), code, "{refused:?}");
        assert!(refused.message().contains(words), "{refused:?}");
    }
    let missing = ExecutionId::mint();
    for (pairs, code) in [
        ([("x-aegis-execution-id", missing.as_str())], "NotFound"),
        ([("x-aegis-execution-id", "../x")], "InvalidArgument"),
    ] {
        let refused = client.execute_agent(with(bearing(asks("", "")), &pairs)).await.unwrap_err();
        assert_eq!(reason(&refused), code);
    }
}

#[tokio::test]
async fn unsupported_calls_are_refused_by_name_on_published_port() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _cluster = Cluster::start_with(&format!("role: controller\n  network: {{grpc_port: {free}}}")).await;
    let published = format!("http://127.0.0.1:{free}");
    let channel = Channel::from_shared(published).unwrap().connect().await.unwrap();
    for call in ["InvokeTool", "SearchAgents", "ExecuteSystemCommand"] {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<theirs::ExecuteAgentRequest, theirs::ExecutionEvent>::default();
        let path = format!("/aegis.runtime.v1.AegisRuntime/{call}").parse().unwrap();
        let refused = client.unary(bearing(asks("greeter", "")), path, codec).await.unwrap_err();
        assert_eq!(reason(&refused), "NotOffered");
        assert!(refused.message().starts_with(call), "{refused:?}");
    }
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn agent_runs_and_all_its_events_are_read() {
    let cluster = Cluster::start_running(ENGINE).await;
    cluster.core().apply_agent(&manifest("cat; echo; echo talk >&2; echo last")).await.unwrap();
    let mut client = client(&cluster).await;
    let answer = client.execute_agent(bearing(asks("greeter", "gr\u{fc}n"))).await.unwrap();
    let id = answer.metadata().get("x-aegis-execution-id").unwrap().to_str().unwrap().to_owned();
    let all = events(answer.into_inner()).await.unwrap();
    let Some(Event::ExecutionStarted(started)) = all.first() else { panic!("{all:?}") };
    assert_eq!((started.execution_id.as_str(), started.agent_id.as_str()), (id.as_str(), "greeter@1"));
    assert_eq!(output(&all), "gr\u{fc}n\nlast\n");
    let Some(Event::ExecutionCompleted(completed)) = all.last() else { panic!("{all:?}") };
    assert_eq!(completed.total_iterations, 1);

    // The same execution again, from its beginning and from its end, and not under another agent's name.
    let again = |agent: &str, after: &str| {
        let pairs = [("x-aegis-execution-id", id.as_str()), ("x-aegis-after-sequence", after)];
        with(bearing(asks(agent, "")), &pairs)
    };
    let whole = client.execute_agent(again("greeter", "0")).await.unwrap().into_inner();
    assert_eq!(events(whole).await.unwrap(), all);
    let rest = client.execute_agent(again("", "1")).await.unwrap().into_inner();
    assert!(!matches!(events(rest).await.unwrap().first(), Some(Event::ExecutionStarted(_))));
    let past = client.execute_agent(again("", "999")).await.unwrap().into_inner();
    assert_eq!(events(past).await.unwrap(), []);
    assert_eq!(reason(&client.execute_agent(again("other", "0")).await.unwrap_err()), "InvalidArgument");
    assert_eq!(
        cluster.core().executions(&ExecutionFilter::default(), 10).await.unwrap().len(),
        1,
        "nothing else was started"
    );
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn stream_ends_with_its_token_and_the_execution_goes_on() {
    let cluster = Cluster::start_running(ENGINE).await;
    cluster.core().apply_agent(&manifest("echo one; sleep 3; exit 3")).await.unwrap();
    let name = AccessTokenName::parse("ci").unwrap();
    let order =
        AccessTokenOrder { name: name.clone(), scope: Scope::Operate, lifetime: Duration::from_secs(60) };
    let grant = cluster.core().create_access_token(order).await.unwrap();
    let bearer = format!("Bearer {}", *grant.token);
    let request = with(Request::new(asks("greeter", "")), &[("authorization", &bearer)]);
    let mut stream = client(&cluster).await.execute_agent(request).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("a first event");
    cluster.core().revoke_access_token(&name).await.unwrap();
    let ended = events(stream).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    let view = cluster.core().executions(&ExecutionFilter::default(), 1).await.unwrap().remove(0);
    let view = cluster.core().await_execution_end(&view.execution_id, LIMIT).await.unwrap();
    assert_eq!(view.exit_code, Some(3));
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn a_client_that_goes_away_ends_its_stream_alone() {
    let cluster = Cluster::start_running(ENGINE).await;
    cluster
        .core()
        .apply_agent(&manifest("echo one; read line; echo \"$line\"; sleep 2; exit 3"))
        .await
        .unwrap();
    let mut client = client(&cluster).await;
    let asked = || with(bearing(asks("greeter", "two\n")), &[("x-aegis-idempotency-key", "k")]);
    let mut gone = client.execute_agent(asked()).await.unwrap().into_inner();
    gone.message().await.unwrap().expect("a first event");
    drop(gone);
    let answer = client.execute_agent(asked()).await.unwrap();
    let id = answer.metadata().get("x-aegis-execution-id").unwrap().to_str().unwrap().to_owned();
    let all = events(answer.into_inner()).await.unwrap();
    assert_eq!(output(&all), "one\ntwo\n");
    let Some(Event::ExecutionFailed(failed)) = all.last() else { panic!("{all:?}") };
    assert!(failed.execution_id == id && failed.reason.contains('3'), "{failed:?}");
    assert_eq!(
        cluster.core().executions(&ExecutionFilter::default(), 10).await.unwrap().len(),
        1,
        "the key is the same execution"
    );
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn a_stream_is_taken_up_again_after_a_restart_of_the_controller() {
    let mut cluster = Cluster::start_running(ENGINE).await;
    let script = "echo one; until test -e /tmp/on; do sleep 0.1; test $((n=n+1)) -lt 30 || touch /tmp/on; done; echo two";
    cluster.core().apply_agent(&manifest(script)).await.unwrap();
    let answer = client(&cluster).await.execute_agent(bearing(asks("greeter", ""))).await.unwrap();
    let id = answer.metadata().get("x-aegis-execution-id").unwrap().to_str().unwrap().to_owned();
    let mut stream = answer.into_inner();
    let mut seen = 0_u32;
    loop {
        seen += 1;
        if let Some(Event::IterationOutput(output)) = stream.message().await.unwrap().unwrap().event {
            assert_eq!(output.output, "one\n");
            break;
        }
    }
    cluster.restart().await;
    let ended =
        tokio::time::timeout(LIMIT, stream.message()).await.expect("no stream outlives its controller");
    assert_eq!(reason(&ended.unwrap_err()), "Unavailable");
    let after = seen.to_string();
    let pairs = [("x-aegis-execution-id", id.as_str()), ("x-aegis-after-sequence", after.as_str())];
    let mut client = client(&cluster).await;
    let rest = client.execute_agent(with(bearing(asks("", "")), &pairs)).await.unwrap().into_inner();
    let rest = events(rest).await.unwrap();
    assert_eq!(output(&rest), "two\n", "{rest:?}");
    assert!(matches!(rest.last(), Some(Event::ExecutionCompleted(_))), "{rest:?}");
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn a_cancel_and_an_exceeded_time_are_failures_to_such_a_client() {
    let cluster = Cluster::start_running(ENGINE).await;
    cluster.core().apply_agent(&manifest("echo on; sleep 60")).await.unwrap();
    let mut client = client(&cluster).await;
    let limits = theirs::ResourceLimits { timeout_seconds: 1, ..Default::default() };
    let policy = theirs::SecurityPolicy { resource_limits: Some(limits), ..Default::default() };
    let short = theirs::ExecuteAgentRequest { security_policy: Some(policy), ..asks("greeter", "") };
    let late = client.execute_agent(bearing(short)).await.unwrap().into_inner();
    let Some(Event::ExecutionFailed(failed)) = events(late).await.unwrap().pop() else { panic!() };
    assert!(failed.reason.contains("1 s"), "{failed:?}");

    let answer = client.execute_agent(bearing(asks("greeter", ""))).await.unwrap();
    let id = answer.metadata().get("x-aegis-execution-id").unwrap().to_str().unwrap();
    cluster.core().cancel_execution(&id.parse().unwrap(), "no longer wanted").await.unwrap();
    let Some(Event::ExecutionFailed(failed)) = events(answer.into_inner()).await.unwrap().pop() else {
        panic!()
    };
    assert!(failed.reason.contains("no longer wanted"), "{failed:?}");
}
