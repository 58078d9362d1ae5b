//! The node's image, made from this executable and its loaded libraries. It needs no registry and no base image, avoids
//! version skew, and works without Docker on the controller's machine.
//!
//! One tar serves every engine: an OCI layout with `manifest.json` and uncompressed layers. The lower layer has
//! libraries and a few system files, and the upper layer has only the executable. All modification times are 0, so
//! equal input gives an equal image.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use aegis_identity::hex_digest;
use aegis_types::error::{Error, Result};
use bytes::Bytes;
use futures::stream;
use serde_json::json;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

const REPOSITORY: &str = "aegis-node";
/// Number of digits of the content digest in the tag.
const TAG_HEX_DIGITS: usize = 12;
const TAR_BLOCK: usize = 512;
/// Size above which a file cannot be this executable.
const EXECUTABLE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Source of the executable.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// This process.
    Own,
    /// Static executable for another machine (`uname -m`).
    Static { path: PathBuf, arch: String },
}

/// Complete image, ready for `docker load`.
#[derive(Debug, Clone)]
pub struct NodeImage {
    pub reference: String,
    segments: Vec<Bytes>,
}

impl NodeImage {
    /// Reads executable and libraries and packs them. Blocks for some 100 ms.
    pub fn build(source: &ImageSource) -> Result<Self> {
        match source {
            ImageSource::Own => {
                let executable = read_executable(Path::new("/proc/self/exe"))?;
                let libraries = loaded_libraries(&executable)?;
                Self::pack(executable, libraries, std::env::consts::ARCH)
            }
            ImageSource::Static { path, arch } => {
                let executable = read_executable(path)?;
                if interpreter(&executable).is_some() {
                    return Err(Error::invalid(format!("{} is not static", path.display()))
                        .remedy("build it with RUSTFLAGS=\"-C target-feature=+crt-static\""));
                }
                Self::pack(executable, BTreeMap::new(), arch)
            }
        }
    }

    pub fn bytes(&self) -> usize {
        self.segments.iter().map(Bytes::len).sum()
    }

    pub fn reader(&self) -> impl AsyncRead + Send + Unpin + 'static {
        StreamReader::new(stream::iter(self.segments.clone().into_iter().map(Ok::<_, io::Error>)))
    }

    fn pack(executable: Vec<u8>, libraries: BTreeMap<PathBuf, Entry>, arch: &str) -> Result<Self> {
        let lower = system_layer(libraries)?;
        let mut upper = Layer::default();
        upper.file("aegis", &executable, 0o755)?;
        drop(executable);
        let (lower, upper) = (lower.finish()?, upper.finish()?);
        let diff_ids: Vec<String> =
            [&lower, &upper].iter().map(|layer| format!("sha256:{}", hex_digest(layer))).collect();
        let config = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": docker_architecture(arch),
            "os": "linux",
            "config": {
                "Entrypoint": ["/aegis"],
                "Env": ["PATH=/", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
                "WorkingDir": "/",
                "Labels": { "aegis.image": "node", "aegis.version": env!("CARGO_PKG_VERSION") },
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": [{ "created_by": "aegis: libraries" }, { "created_by": "aegis: executable" }],
        });
        let config = config.to_string().into_bytes();
        let tag = hex_digest(&config)[..TAG_HEX_DIGITS].to_owned();
        outer(lower.into(), upper.into(), config.into(), &tag)
    }
}

fn docker_architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn outer(lower: Bytes, upper: Bytes, config: Bytes, tag: &str) -> Result<NodeImage> {
    let reference = format!("{REPOSITORY}:{tag}");
    let descriptor = |kind: &str, blob: &Bytes| {
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "size": blob.len(),
                "digest": format!("sha256:{}", hex_digest(blob)) })
    };
    let manifest: Bytes = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &lower), descriptor("layer.v1.tar", &upper)],
    })
    .to_string()
    .into();
    let mut index_entry = descriptor("manifest.v1+json", &manifest);
    index_entry["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{reference}"),
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({ "schemaVersion": 2, "manifests": [index_entry] });
    let blob = |blob: &Bytes| format!("blobs/sha256/{}", hex_digest(blob));
    let docker =
        json!([{ "Config": blob(&config), "RepoTags": [reference], "Layers": [blob(&lower), blob(&upper)] }]);
    let mut segments = Vec::new();
    for (name, content) in [
        (blob(&lower), lower),
        (blob(&upper), upper),
        (blob(&config), config),
        ("manifest.json".to_owned(), docker.to_string().into()),
        (blob(&manifest), manifest),
        ("oci-layout".to_owned(), json!({ "imageLayoutVersion": "1.0.0" }).to_string().into()),
        ("index.json".to_owned(), index.to_string().into()),
    ] {
        // Headers are separate from contents, so that a layer is in memory only once.
        let header = header(content.len() as u64, 0o644, tar::EntryType::Regular, &name, None)?;
        segments.push(Bytes::copy_from_slice(header.as_bytes()));
        let padding = content.len().next_multiple_of(TAR_BLOCK) - content.len();
        segments.push(content);
        segments.push(Bytes::from(vec![0; padding]));
    }
    segments.push(Bytes::from(vec![0; 2 * TAR_BLOCK]));
    Ok(NodeImage { reference, segments })
}

/// File or link of the lower layer.
enum Entry {
    File(Vec<u8>),
    Link(String),
}

fn system_layer(libraries: BTreeMap<PathBuf, Entry>) -> Result<Layer> {
    let mut layer = Layer::default();
    layer.directory("tmp", 0o1777)?;
    // A named volume inherits this mode: the node runs as the ssh user.
    layer.directory("var/lib/aegis", 0o1777)?;
    layer.directory("run/aegis", 0o755)?;
    layer.file("etc/passwd", b"root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\n", 0o644)?;
    layer.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    layer.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n", 0o644)?;
    if let Some(bundle) = CA_BUNDLES.iter().find_map(|path| std::fs::read(path).ok()) {
        layer.file("etc/ssl/certs/ca-certificates.crt", &bundle, 0o644)?;
    }
    layer.directory("etc/aegis", 0o755)?;
    for (path, entry) in libraries {
        let path = path.to_string_lossy();
        let path = path.trim_start_matches('/');
        match entry {
            Entry::File(content) => layer.file(path, &content, 0o755)?,
            Entry::Link(to) => layer.link(path, &to)?,
        }
    }
    Ok(layer)
}

/// Tar of a layer. Parent directories are created on demand.
#[derive(Default)]
struct Layer {
    tar: Vec<u8>,
    directories: BTreeSet<String>,
}

impl Layer {
    fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent, 0o755)?;
        }
        if self.directories.insert(path.to_owned()) {
            self.entry(&format!("{path}/"), &[], mode, tar::EntryType::Directory, None)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent, 0o755)?;
        }
        self.entry(path, content, mode, tar::EntryType::Regular, None)
    }

    fn link(&mut self, path: &str, to: &str) -> Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent, 0o755)?;
        }
        self.entry(path, &[], 0o777, tar::EntryType::Symlink, Some(to))
    }

    fn entry(
        &mut self,
        path: &str,
        content: &[u8],
        mode: u32,
        kind: tar::EntryType,
        to: Option<&str>,
    ) -> Result<()> {
        let header = header(content.len() as u64, mode, kind, path, to)?;
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(TAR_BLOCK), 0);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.tar.resize(self.tar.len() + 2 * TAR_BLOCK, 0);
        Ok(self.tar)
    }
}

fn header(size: u64, mode: u32, kind: tar::EntryType, path: &str, to: Option<&str>) -> Result<tar::Header> {
    let failed =
        |error: io::Error| Error::internal(format!("{path} does not fit into an image")).source(error);
    let mut header = tar::Header::new_ustar();
    header.set_path(path).map_err(failed)?;
    if let Some(to) = to {
        header.set_link_name(to).map_err(failed)?;
    }
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

fn read_executable(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: io::Error| {
        Error::invalid(format!("executable {} cannot be read", path.display())).source(error)
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > EXECUTABLE_BYTES_MAX {
        return Err(Error::invalid(format!("executable {} is too large", path.display())));
    }
    let content = std::fs::read(path).map_err(failed)?;
    if !content.starts_with(b"\x7fELF") {
        return Err(Error::invalid(format!("{} is not a Linux executable", path.display())));
    }
    Ok(content)
}

/// Returns the shared libraries that this process has mapped, with the links that the loader follows. The loader itself
/// is included at the path that the executable names.
fn loaded_libraries(executable: &[u8]) -> Result<BTreeMap<PathBuf, Entry>> {
    let mut libraries = BTreeMap::new();
    let Some(loader) = interpreter(executable) else { return Ok(libraries) };
    let failed = |path: &Path, error: io::Error| {
        Error::internal(format!("library {} cannot be read", path.display())).source(error)
    };
    let maps = std::fs::read_to_string("/proc/self/maps")
        .map_err(|error| Error::internal("the loaded libraries cannot be listed").source(error))?;
    let paths: BTreeSet<PathBuf> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|path| path.starts_with('/') && path.contains(".so"))
        .map(PathBuf::from)
        .collect();
    for path in paths {
        libraries
            .insert(path.clone(), Entry::File(std::fs::read(&path).map_err(|error| failed(&path, error))?));
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
        for entry in std::fs::read_dir(dir).map_err(|error| failed(dir, error))?.flatten() {
            let leads_here = std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == name);
            if leads_here {
                libraries.insert(entry.path(), Entry::Link(name.to_string_lossy().into_owned()));
            }
        }
    }
    let loader = PathBuf::from(loader);
    let content = std::fs::read(&loader).map_err(|error| failed(&loader, error))?;
    libraries.insert(loader, Entry::File(content));
    Ok(libraries)
}

/// Returns the loader that an ELF executable names (PT_INTERP); `None` for a static executable.
fn interpreter(elf: &[u8]) -> Option<String> {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| elf.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
    let u32_at = |at: usize| elf.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let u64_at = |at: usize| usize::try_from(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?)).ok();
    let (table, size, count) = (u64_at(32)?, usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    (0..count).find_map(|index| {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if u32_at(header)? != PT_INTERP {
            return None;
        }
        let (offset, length) = (u64_at(header + 8)?, u64_at(header + 32)?);
        let text = elf.get(offset..offset.checked_add(length)?)?;
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_input_gives_the_same_image_in_one_layout() {
        let one = NodeImage::build(&ImageSource::Own).unwrap();
        let two = NodeImage::build(&ImageSource::Own).unwrap();
        assert_eq!(one.reference, two.reference);
        let bytes: Vec<u8> = one.segments.concat();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        for name in ["manifest.json", "oci-layout", "index.json"] {
            assert!(names.iter().any(|one| one == name), "{names:?}");
        }
        assert_eq!(names.iter().filter(|name| name.starts_with("blobs/sha256/")).count(), 4);
        assert!(one.reference.starts_with("aegis-node:") && one.reference.len() == "aegis-node:".len() + 12);
    }

    #[test]
    fn a_dynamic_executable_is_no_static_one() {
        let path = std::env::current_exe().unwrap();
        let source = ImageSource::Static { path, arch: "x86_64".into() };
        assert!(NodeImage::build(&source).unwrap_err().to_string().contains("not static"));
        let source = ImageSource::Static { path: "/etc/passwd".into(), arch: "x86_64".into() };
        assert!(NodeImage::build(&source).is_err());
    }
}
