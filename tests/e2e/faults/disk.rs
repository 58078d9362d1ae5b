//! The disk of a worker that is full.

use serde_json::json;

use super::{BACK_LIMIT, all_are_active, becomes, begin, submit};
use crate::support::{
    fleet::{ONE, fleet_of_its_own},
    poll::until,
    testbed::Disturbed,
    work::{counted, counting, read_to_end, script},
};

const LINES: u32 = 20;
/// More than is left of the blocks that its log has already.
const REST_BYTES: usize = 100_000;
/// Its data directory gets a file system of its own, small and in memory.
const SMALL_DISK: &str = "set -e; node=$(docker ps -q --filter label=com.docker.compose.project=aitheros-edge)
    data=$(docker inspect -f '{{range .Mounts}}{{if eq .Destination \"/var/lib/aegis\"}}{{.Source}}{{end}}{{end}}' $node)
    docker stop $node >/dev/null
    mkdir -p /run/small; mount -t tmpfs -o size=200m,mode=700 none /run/small
    cp -a $data/. /run/small/; chown --reference=$data /run/small; mount --bind /run/small $data
    docker start $node >/dev/null";
const UNDO: &str =
    "umount -l \"$(awk '/_node_data\\/_data/ {print $2}' /proc/mounts)\" && umount -l /run/small";

#[tokio::test]
async fn it_takes_no_new_work_keeps_what_it_has_and_recovers() {
    let fleet = fleet_of_its_own(|_| ()).await;
    let mut client = fleet.client().await;
    let host = fleet.host_of(ONE);
    let _small = Disturbed::new(host, SMALL_DISK, UNDO);
    all_are_active(&mut client).await;
    let rest = format!("head -c {REST_BYTES} /dev/zero | tr '\\0' x; exit 5");
    let text = counting(LINES, 5).replace("exit 5", &rest);
    let running = begin(&mut client, script(&text, &["one"])).await;

    host.sh("dd if=/dev/zero of=/run/small/filler bs=1M 2>/dev/null; sync; ! dd if=/dev/zero of=/run/small/more bs=4k count=64 2>/dev/null");
    let refused = submit(&mut client, script("echo there is room", &["one"])).await;
    let why = until("it says why it waits", BACK_LIMIT, async || {
        let view = super::view(&mut client, &refused).await;
        view["waiting"].as_str().filter(|why| why.contains("disk")).map(str::to_owned)
    })
    .await;
    assert!(why.contains(ONE) && why.contains("MiB left"), "{why}");
    // It ends while nothing of it can be written.
    let filter = format!("label=aegis.execution_id={running}");
    until("the container has ended", BACK_LIMIT, async || {
        host.sh(&format!("docker ps -q --filter {filter}")).is_empty().then_some(())
    })
    .await;
    becomes(&mut client, &running, "running", 1).await;
    host.sh("rm /run/small/filler /run/small/more");

    let ended = read_to_end(&mut client, &running).await;
    assert_eq!(
        (&ended.view["exit_code"], &ended.view["attempt"]),
        (&json!(5), &json!(1)),
        "{:#}",
        ended.view
    );
    let whole = counted(LINES) + &"x".repeat(REST_BYTES);
    assert!(ended.stdout == whole, "{} bytes of {}", ended.stdout.len(), whole.len());
    let ended = read_to_end(&mut client, &refused).await;
    assert_eq!(ended.stdout, "there is room\n", "{:#}", ended.view);
}
