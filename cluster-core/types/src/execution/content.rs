//! Content that travels with an execution: its workspace and its image.

/// Pieces are about this large; each is one message.
pub const PIECE_BYTES: usize = 128 * 1024;

/// A workspace or an image on its way to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Workspace {
        digest: String,
        bytes: u64,
    },
    Image {
        reference: String,
        digest: String,
        /// Approximate size.
        bytes: u64,
    },
}

/// An image that the controller can send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOffer {
    /// Digest of the parts that make an image the same on every engine.
    pub digest: String,
    /// Architecture by Docker's name, like `amd64`.
    pub architecture: String,
    /// The image was built on the controller's machine. The node uses it even if it has another under this name.
    pub exact: bool,
}
