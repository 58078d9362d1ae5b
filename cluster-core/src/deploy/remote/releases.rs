//! The releases that a host keeps: which there are, which one is current, which were good.

use std::collections::BTreeMap;

use super::{
    super::{
        health::{CONTAINER_FORMAT, Look},
        release::{KeptRelease, NOTE_FILE, READY_FILE, ReadyMark, ReleaseNote},
        stack::PROJECT,
    },
    Remote, SHORT, checked,
};
use crate::{
    error::{Error, Result},
    ids::DeploymentId,
};

/// Good ones and others, newest first; the current one always stays.
const RELEASES_KEPT: &str = "5";

/// How a release stands on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub current: Option<DeploymentId>,
    /// All of its files are there.
    pub complete: bool,
}

/// A stack before it counts as good.
#[derive(Debug)]
pub struct LastLook {
    pub look: Look,
    pub current: Option<DeploymentId>,
    /// By reference; what is not there is left out.
    pub images: BTreeMap<String, String>,
}

impl Remote<'_> {
    /// All of it in one round trip.
    pub async fn last_look(&self, references: &[String]) -> Result<LastLook> {
        let mut arguments = vec![PROJECT, CONTAINER_FORMAT, self.base];
        arguments.extend(references.iter().map(String::as_str));
        let output = self.run("look at the stack once more", LAST_LOOK, &arguments, SHORT).await?;
        let current = output.stdout.lines().find_map(|line| line.strip_prefix("current="));
        let images = output.stdout.lines().filter_map(|line| line.strip_prefix("image=")?.split_once(' '));
        Ok(LastLook {
            look: Look::parse(&output.stdout),
            current: current.map(DeploymentId::parse).transpose()?,
            images: images.map(|(id, reference)| (reference.to_owned(), id.to_owned())).collect(),
        })
    }

    pub async fn standing(&self, release: &DeploymentId) -> Result<Standing> {
        let arguments = [self.base, release.as_str(), NOTE_FILE];
        let output = self.run("look at the releases", STANDING, &arguments, SHORT).await?;
        let value = |name: &str| output.stdout.lines().find_map(|line| line.strip_prefix(name));
        Ok(Standing {
            current: value("current=").map(DeploymentId::parse).transpose()?,
            complete: value("complete=").is_some(),
        })
    }

    /// All that have a note; an incomplete one is none.
    pub async fn kept(&self) -> Result<Vec<KeptRelease>> {
        let arguments = [self.base, NOTE_FILE, READY_FILE];
        let output = self.run("look at the releases", KEPT, &arguments, SHORT).await?;
        Ok(read_kept(&output.stdout))
    }

    /// Marks a release as good, and drops what is older than the last five.
    pub async fn settle(&self, release: &DeploymentId, mark: &ReadyMark) -> Result<()> {
        let mark = serde_json::to_string(mark)
            .map_err(|error| Error::internal("a mark cannot be written").source(error))?;
        let arguments = [self.base, release.as_str(), READY_FILE, &mark, RELEASES_KEPT];
        self.run("mark the release as good", SETTLE, &arguments, SHORT).await.map(drop)
    }

    pub async fn drop_release(&self, release: &DeploymentId) -> Result<()> {
        let script = r#"[ "$(readlink "$1/current")" = "releases/$2" ] || rm -rf -- "$1/releases/$2""#;
        let output = self.connection.script(script, &[self.base, release.as_str()], SHORT).await?;
        checked(output, "remove the failed release").map(drop)
    }

    /// By reference; what is not there is left out.
    pub async fn image_ids(&self, references: &[String]) -> Result<BTreeMap<String, String>> {
        let arguments: Vec<&str> = references.iter().map(String::as_str).collect();
        let output = self.run("look for images", IMAGE_IDS, &arguments, SHORT).await?;
        let pairs = output.stdout.lines().filter_map(|line| line.split_once(' '));
        Ok(pairs.map(|(id, reference)| (reference.to_owned(), id.to_owned())).collect())
    }

    /// Has the reference mean this image again; false when the image is not there any more.
    pub async fn tag(&self, id: &str, reference: &str) -> Result<bool> {
        let script = r#"docker image inspect "$1" >/dev/null 2>&1 && docker tag "$1" "$2""#;
        Ok(self.connection.script(script, &[id, reference], SHORT).await?.success())
    }
}

fn read_kept(text: &str) -> Vec<KeptRelease> {
    let mut kept: Vec<KeptRelease> = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        match name {
            "note" => kept.extend(serde_json::from_str::<ReleaseNote>(value).ok().map(|note| KeptRelease {
                note,
                ready: None,
                current: false,
            })),
            "ready" => {
                if let Some((id, mark)) = value.split_once('=')
                    && let Some(release) = kept.iter_mut().find(|one| one.note.deployment_id.as_str() == id)
                {
                    release.ready = serde_json::from_str(mark).ok();
                }
            }
            "current" => {
                kept.iter_mut().for_each(|one| one.current = one.note.deployment_id.as_str() == value);
            }
            _ => {}
        }
    }
    kept
}

/// $1 base, $2 release, $3 its note.
const STANDING: &str = r#"
current=$(readlink "$1/current" 2>/dev/null)
[ -z "$current" ] || printf 'current=%s\n' "${current#releases/}"
[ ! -f "$1/releases/$2/$3" ] || echo complete=yes
"#;

/// $1 base, $2 note, $3 mark.
const KEPT: &str = r#"
cd -- "$1/releases" 2>/dev/null || exit 0
for release in *; do
  [ -f "$release/$2" ] || continue
  printf 'note='; head -c 262144 "$release/$2" | tr -d '\n\r'; echo
  if [ -f "$release/$3" ]; then printf 'ready=%s=' "$release"; head -c 65536 "$release/$3" | tr -d '\n\r'; echo; fi
done
current=$(readlink ../current); printf 'current=%s\n' "${current#releases/}"
"#;

/// $1 base, $2 release, $3 mark's file, $4 mark, $5 releases kept. Node images that no release names any
/// more go; Docker keeps those that a container uses.
const SETTLE: &str = r#"
set -e
cd -- "$1"
[ -d "releases/$2" ]
printf '%s\n' "$4" > "releases/$2/$3.new"
sync -- "releases/$2/$3.new" 2>/dev/null || sync
mv -- "releases/$2/$3.new" "releases/$2/$3"
sync -- "releases/$2" 2>/dev/null || sync
current=$(readlink current); n=0
for release in $(ls -1t releases); do
  n=$((n + 1))
  if [ "$n" -gt "$5" ] && [ "releases/$release" != "$current" ]; then rm -rf -- "releases/$release"; fi
done
if [ -d releases/.files ]; then
  # Content that no release leads to is nobody's.
  used=$(find releases -path releases/.files -prune -o -type l -exec readlink '{}' ';')
  for content in releases/.files/*; do
    case "$used" in *"/.files/${content##*/}"*) ;; *) rm -rf -- "$content";; esac
  done
fi
for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}' --filter 'reference=aegis-node:*'); do
  grep -qF "AEGIS_NODE_IMAGE=\"$image\"" releases/*/.env || docker image rm "$image" >/dev/null 2>&1 || true
done
"#;

/// $1 project, $2 format, $3 base, then images.
const LAST_LOOK: &str = concat!(
    containers!(),
    r#"
current=$(readlink "$3/current" 2>/dev/null)
[ -z "$current" ] || printf 'current=%s\n' "${current#releases/}"
shift 3
for image in "$@"; do id=$(docker image inspect -f '{{.Id}}' "$image" 2>/dev/null) && printf 'image=%s %s\n' "$id" "$image"; done
true
"#
);

const IMAGE_IDS: &str = r#"for image in "$@"; do id=$(docker image inspect -f '{{.Id}}' "$image" 2>/dev/null) && printf '%s %s\n' "$id" "$image"; done; true"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_releases_are_read_and_nonsense_is_none() {
        let note = |number| {
            format!(
                r#"{{"deployment_id":"{}","node_id":"a","files":{{}},"services":[]}}"#,
                DeploymentId::mint(1, number)
            )
        };
        let (one, two) = (DeploymentId::mint(1, 1), DeploymentId::mint(1, 2));
        let text = format!(
            "note={}\nready={one}={{\"at_ms\":7,\"images\":{{\"a:1\":\"sha256:x\"}}}}\nnote={}\nnote={{\ncurrent={two}\n",
            note(1),
            note(2)
        );
        let kept = read_kept(&text);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[0].ready.as_ref().unwrap().images["a:1"], "sha256:x");
        assert!(kept[1].current && kept[1].ready.is_none() && !kept[0].current);
        assert!(read_kept("").is_empty());
    }
}
