//! Many hosts in one call: two that exist and one that does not.

use std::{path::PathBuf, time::Duration};

use cluster_core::{
    deploy::{
        DeploymentRequest, DeploymentState, MemberState, RolloutRequest, RolloutState, RolloutView, Rollouts,
    },
    types::{
        error::{Error, ErrorCode},
        principal::Origin,
    },
};

use crate::{
    bench::{Bench, bench},
    support::{GOOD_NODE, Host, host, stand_in_node},
};

const LIMIT: Duration = Duration::from_secs(180);

/// Returns an unused address of the hosts' own network.
fn nobody(host: &Host) -> String {
    let (network, _) = host.ip.rsplit_once('.').unwrap();
    format!("{network}.250")
}

struct Fleet {
    benches: [Bench; 2],
    rollouts: Rollouts,
}

impl Fleet {
    /// Two clean hosts, and one controller.
    async fn new(binary: PathBuf) -> Self {
        let benches = [bench(host(0), Some(binary.clone())), bench(host(1), Some(binary))];
        for bench in &benches {
            bench.clean().await;
        }
        let rollouts = Rollouts::new(benches[0].deployments.clone(), benches[0].journal.clone());
        Self { benches, rollouts }
    }

    fn request(&self, hosts: &[&str]) -> RolloutRequest {
        let hosts =
            hosts.iter().map(|ip| DeploymentRequest { host: (*ip).into(), ..self.benches[0].request() });
        RolloutRequest { hosts: hosts.collect(), ..Default::default() }
    }

    async fn end_of(&self, begun: RolloutView) -> RolloutView {
        let mut views = self.rollouts.watch(&begun.rollout_id).await.unwrap();
        let ended = views.wait_for(|view| view.state.is_final());
        tokio::time::timeout(LIMIT, ended).await.unwrap().unwrap().clone()
    }

    async fn refused(&self, request: &RolloutRequest) -> Error {
        let begun = self.benches[0].journal.deployments();
        let error = self.rollouts.start(request, Origin::Assistant).await.unwrap_err();
        assert_eq!(self.benches[0].journal.deployments(), begun, "something was begun");
        error
    }
}

fn states(view: &RolloutView) -> Vec<MemberState> {
    view.members.iter().map(|member| member.state).collect()
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn one_of_three_fails_the_rest_is_skipped_or_goes_on_as_asked() {
    use MemberState::{Failed, Skipped, Succeeded};
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::new(stand_in_node(dir.path(), "good", GOOD_NODE)).await;
    let (one, two) = (fleet.benches[0].host.ip.clone(), fleet.benches[1].host.ip.clone());
    let nobody = nobody(&fleet.benches[0].host);

    let mut wrong = fleet.request(&[&one, &two, "edge.example.com"]);
    wrong.hosts[1].identity = Some("pinned-elsewhere".into());
    let error = fleet.refused(&wrong).await;
    assert!(error.message().starts_with("2 of 3 hosts are refused"), "{error}");
    assert!(
        error.message().contains("pinned to edge7") && error.message().contains("not approved"),
        "{error}"
    );
    assert_eq!(fleet.refused(&fleet.request(&[&one, &one])).await.code(), ErrorCode::InvalidArgument);

    let plan = fleet.rollouts.plan(&fleet.request(&[&one, &nobody, &two]), Origin::Assistant).await.unwrap();
    assert_eq!(plan.hosts.iter().map(|host| host.can_deploy).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(plan.hosts[1].failure.as_ref().unwrap().code, ErrorCode::HostUnreachable);
    assert_eq!(fleet.benches[0].journal.deployments(), 0);

    let one_by_one = RolloutRequest {
        max_parallel: Some(1),
        idempotency_key: Some("all".into()),
        ..fleet.request(&[&one, &nobody, &two])
    };
    let begun = fleet.rollouts.start(&one_by_one, Origin::Assistant).await.unwrap();
    let again = fleet.rollouts.start(&one_by_one, Origin::Assistant).await.unwrap();
    assert_eq!(again.rollout_id, begun.rollout_id);
    let other = RolloutRequest { max_failures: Some(0), ..one_by_one.clone() };
    assert_eq!(fleet.refused(&other).await.code(), ErrorCode::Conflict);
    let ended = fleet.end_of(begun).await;
    assert_eq!(
        (ended.state, states(&ended)),
        (RolloutState::Failed, vec![Succeeded, Failed, Skipped]),
        "{ended:#?}"
    );
    assert_eq!(ended.summary, "3 hosts: 1 succeeded, 1 failed, 1 skipped");
    assert_eq!(ended.members[1].failure.as_ref().unwrap().code, ErrorCode::HostUnreachable);
    assert!(ended.members[2].deployment_id.is_none());
    let id = ended.members[0].deployment_id.clone().unwrap();
    assert_eq!(fleet.benches[0].deployments.get(&id).await.unwrap().state, DeploymentState::Ready);
    assert_eq!(fleet.rollouts.list(10).await.unwrap(), [ended]);

    let all = RolloutRequest { max_failures: Some(0), ..fleet.request(&[&nobody, &one, &two]) };
    let begun = fleet.rollouts.start(&all, Origin::Assistant).await.unwrap();
    let ended = fleet.end_of(begun).await;
    assert_eq!(states(&ended), [Failed, Succeeded, Succeeded], "{ended:#?}");
    for bench in &fleet.benches {
        bench.clean().await;
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn called_off_nothing_more_is_begun_and_what_runs_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::new(stand_in_node(dir.path(), "good", GOOD_NODE)).await;
    let (one, two) = (fleet.benches[0].host.ip.clone(), fleet.benches[1].host.ip.clone());
    let request = RolloutRequest { max_parallel: Some(1), ..fleet.request(&[&one, &two]) };
    let begun = fleet.rollouts.start(&request, Origin::Assistant).await.unwrap();
    let mut views = fleet.rollouts.watch(&begun.rollout_id).await.unwrap();
    views.wait_for(|view| view.members[0].step.is_some()).await.unwrap();
    let noted = fleet.rollouts.cancel(&begun.rollout_id).await.unwrap();
    assert!(noted.cancel_requested);
    let ended = fleet.end_of(begun).await;
    assert_eq!(ended.state, RolloutState::Cancelled, "{ended:#?}");
    assert_eq!(states(&ended), [MemberState::Cancelled, MemberState::Skipped]);
    for bench in &fleet.benches {
        let connection = bench.host.connect().await;
        crate::support::run(
            &connection,
            r#"[ ! -e "$1" ] && [ -z "$(docker ps -aq)" ]"#,
            &[crate::bench::BASE],
        )
        .await;
    }
}
