//! Images on the host: listed, loaded over the connection, or pulled by the host.

use std::{
    collections::BTreeMap,
    io::Cursor,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use aegis_engine::{ImageContent, node_image::NodeImage};
use aegis_ssh::script::tail;
use aegis_types::{error::Result, registry::cannot_pull, secret::Secret};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use super::{HostSession, SHORT, named};
use crate::host::scripts;

impl HostSession<'_> {
    pub async fn missing_images(&self, references: &[String]) -> Result<Vec<String>> {
        let arguments: Vec<&str> = references.iter().map(String::as_str).collect();
        let output = self.run("look for images", scripts::MISSING_IMAGES, &arguments, SHORT).await?;
        Ok(output.stdout.lines().map(str::to_owned).collect())
    }

    /// Removes images. Keeps images that a container uses, and layers that another image shares.
    pub async fn drop_images(&self, references: &[String]) -> Result<()> {
        let arguments: Vec<&str> = references.iter().map(String::as_str).collect();
        self.run("remove images", scripts::DROP_IMAGES, &arguments, SHORT).await.map(drop)
    }

    pub async fn load(&self, image: &NodeImage, limit: Duration) -> Result<()> {
        self.receive(&image.reference, image.reader(), limit).await
    }

    /// Returns the contents of the images that exist. An empty request needs no round trip.
    pub async fn image_contents(&self, references: &[String]) -> Result<BTreeMap<String, ImageContent>> {
        if references.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut arguments = vec![CONTENT_FORMAT];
        arguments.extend(references.iter().map(String::as_str));
        let output = self.run("look at images", scripts::IMAGE_CONTENTS, &arguments, SHORT).await?;
        let content = |line: &str| {
            let (reference, inspection) = line.split_once(' ')?;
            let inspection = serde_json::from_str(inspection).ok()?;
            Some((reference.to_owned(), ImageContent::of_inspection(&inspection)?))
        };
        Ok(output.stdout.lines().filter_map(content).collect())
    }

    /// Loads an image in the format of `docker save`.
    pub async fn receive(
        &self,
        reference: &str,
        image: impl AsyncRead + Send + Unpin + 'static,
        limit: Duration,
    ) -> Result<()> {
        let what = format!("load the image {reference}");
        self.run_with(&what, scripts::LOAD, &[self.base], image, limit).await.map(drop)
    }

    /// Pulls an image. `login` is the content of Docker's `config.json` for this one pull.
    pub async fn pull(&self, reference: &str, login: Option<&Secret>, limit: Duration) -> Result<()> {
        let output = match login {
            None => self.connection.script(scripts::PULL, &[self.base, reference], limit).await,
            Some(config) => {
                let length = config.reveal().len().to_string();
                let arguments = [self.base, reference, &length];
                let input = Cursor::new(config.reveal().as_bytes().to_vec()).chain(StaysOpen);
                self.connection.script_with_input(scripts::PULL_WITH_LOGIN, &arguments, input, limit).await
            }
        };
        let output = output.map_err(|error| named(error, &format!("docker pull {reference}")))?;
        if output.success() {
            return Ok(());
        }
        let why = tail(&output.stderr, 2).replace('\n', " ");
        Err(cannot_pull(reference, "host", login.is_some(), &why))
    }
}

/// Standard input without an end. It lasts as long as the connection, so the host notices a cut.
struct StaysOpen;

impl AsyncRead for StaysOpen {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // Never woken: the reader also waits for other events.
        Poll::Pending
    }
}

/// Format that [`ImageContent::of_inspection`] parses.
const CONTENT_FORMAT: &str = r#"{"RootFS":{"Layers":{{json .RootFS.Layers}}},"Config":{{json .Config}}}"#;
