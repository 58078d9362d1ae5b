//! Checks the structure of the crates: the modules of a crate depend on each other in one direction.
//!
//! The modules below one parent form a graph: `a` depends on `b` where code in `a` or below names an item in `b` or
//! below. Tests are left out. A cycle in such a graph fails the check, with one reference for each edge. Paths are
//! resolved through the `use` items of a parent, so that a re-export hides no edge.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, UseTree,
    visit::{self, Visit},
};

/// Path of a module below its crate's root.
type ModulePath = Vec<String>;
/// Module that refers to another, with a reference as `file: path`.
type Edges = BTreeMap<(String, String), String>;

/// Modules of one crate, with the references in each.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Names that `use` items bring into the module, with their absolute paths.
    imports: BTreeMap<String, ModulePath>,
    /// Absolute paths that the module's code names, below the crate's root.
    references: BTreeSet<ModulePath>,
}

/// Collects the references of one module. Relative paths become absolute.
struct References<'a> {
    module: &'a [String],
    children: BTreeSet<String>,
    imports: BTreeMap<String, ModulePath>,
    found: BTreeSet<ModulePath>,
}

impl References<'_> {
    /// Returns the absolute path of a path that begins at `crate`, `self`, `super` or a child module.
    fn absolute(&self, path: &[String]) -> Option<ModulePath> {
        let first = path.first()?.as_str();
        match first {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([self.module, &path[1..]].concat()),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let base = self.module.len().checked_sub(ups)?;
                Some([&self.module[..base], &path[ups..]].concat())
            }
            _ if self.children.contains(first) && path.len() > 1 => Some([self.module, path].concat()),
            _ => None,
        }
    }

    fn take_use(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.take_use(prefix, &path.tree);
                prefix.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.take_use(prefix, tree)),
            UseTree::Name(name) if name.ident == "self" => {
                let name = prefix.last().cloned().unwrap_or_default();
                self.import(&name, prefix);
            }
            UseTree::Name(name) => {
                let path = [prefix.as_slice(), &[name.ident.to_string()]].concat();
                self.import(&name.ident.to_string(), &path);
            }
            UseTree::Rename(rename) => {
                let path = [prefix.as_slice(), &[rename.ident.to_string()]].concat();
                self.import(&rename.rename.to_string(), &path);
            }
            UseTree::Glob(_) => self.import("*", prefix),
        }
    }

    fn import(&mut self, name: &str, path: &[String]) {
        if let Some(absolute) = self.absolute(path) {
            self.found.insert(absolute.clone());
            self.imports.insert(name.to_owned(), absolute);
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let mut found = false;
        if attribute.path().is_ident("cfg") {
            let _ = attribute.parse_nested_meta(|meta| {
                found |= meta.path.is_ident("test");
                Ok(())
            });
        }
        found
    })
}

impl<'ast> Visit<'ast> for References<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Mod(module) if is_test(&module.attrs) || module.content.is_none() => {}
            Item::Use(item) if !is_test(&item.attrs) => self.take_use(&mut Vec::new(), &item.tree),
            Item::Fn(item) if is_test(&item.attrs) => {}
            Item::Impl(item) if is_test(&item.attrs) => {}
            Item::Use(_) => {}
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts = path.segments.iter().map(|part| part.ident.to_string()).collect::<Vec<_>>();
        if let Some(absolute) = self.absolute(&parts) {
            self.found.insert(absolute);
        }
        visit::visit_path(self, path);
    }
}

impl Crate {
    fn read(root: &Path) -> Self {
        let mut found = Self::default();
        let main = ["lib.rs", "main.rs"].map(|name| root.join(name)).into_iter().find(|path| path.exists());
        found.read_module(&main.expect("a crate has lib.rs or main.rs"), root, Vec::new());
        found
    }

    fn read_module(&mut self, file: &Path, directory: &Path, path: ModulePath) {
        let text = fs::read_to_string(file).unwrap();
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let children = parsed.items.iter().filter_map(|item| match item {
            Item::Mod(module) if module.content.is_none() && !is_test(&module.attrs) => {
                Some((module.ident.to_string(), module.attrs.clone()))
            }
            _ => None,
        });
        let children = children.collect::<Vec<_>>();
        let names = children.iter().map(|(name, _)| name.clone()).collect();
        let mut references =
            References { module: &path, children: names, imports: BTreeMap::new(), found: BTreeSet::new() };
        references.visit_file(&parsed);
        let module =
            Module { file: file.to_owned(), imports: references.imports, references: references.found };
        for (name, _) in &children {
            let (flat, nested) = (directory.join(format!("{name}.rs")), directory.join(name).join("mod.rs"));
            let file = if flat.exists() { flat } else { nested };
            self.read_module(
                &file,
                &directory.join(name),
                [path.as_slice(), std::slice::from_ref(name)].concat(),
            );
        }
        self.modules.insert(path, module);
    }

    /// Follows the imports of modules, so that a path ends at the module that defines its item.
    fn resolve(&self, path: &[String]) -> ModulePath {
        let mut path = path.to_vec();
        for _ in 0..8 {
            let depth = (0..=path.len()).rev().find(|&depth| self.modules.contains_key(&path[..depth]));
            let Some(depth) = depth.filter(|&depth| depth < path.len()) else { return path };
            let Some(target) = self.modules[&path[..depth]].imports.get(&path[depth]) else { return path };
            let next = [target.as_slice(), &path[depth + 1..]].concat();
            if next == path {
                return path;
            }
            path = next;
        }
        path
    }

    /// Returns the edges between the modules below `parent`.
    fn edges(&self, parent: &[String]) -> Edges {
        let mut edges = Edges::new();
        let below = |path: &[String]| path.len() > parent.len() && path.starts_with(parent);
        for (path, module) in self.modules.iter().filter(|(path, _)| below(path)) {
            for reference in &module.references {
                let target = self.resolve(reference);
                let is_module = below(&target) && self.modules.contains_key(&target[..parent.len() + 1]);
                if is_module && target[parent.len()] != path[parent.len()] {
                    edges
                        .entry((path[parent.len()].clone(), target[parent.len()].clone()))
                        .or_insert_with(|| format!("{}: {}", module.file.display(), target.join("::")));
                }
            }
        }
        edges
    }

    /// Returns the edges that lie on a cycle, for all parents.
    fn cycles(&self) -> Vec<String> {
        let mut found = Vec::new();
        for parent in self.modules.keys() {
            let edges = self.edges(parent);
            let reach = |from: &str| {
                let mut seen = BTreeSet::new();
                let mut open = vec![from.to_owned()];
                while let Some(at) = open.pop() {
                    for (_, to) in edges.keys().filter(|(from, _)| *from == at) {
                        if seen.insert(to.clone()) {
                            open.push(to.clone());
                        }
                    }
                }
                seen
            };
            for ((from, to), reference) in &edges {
                if reach(to).contains(from) {
                    found.push(format!("{}: {from} -> {to} ({reference})", parent.join("::")));
                }
            }
        }
        found
    }
}

#[test]
fn modules_of_a_crate_form_no_cycle() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut crates = vec![workspace.join("mcp-server/src"), workspace.join("cluster-core/src")];
    let below = fs::read_dir(workspace.join("cluster-core")).unwrap();
    crates.extend(
        below.map(|entry| entry.unwrap().path().join("src")).filter(|path| path.join("lib.rs").exists()),
    );
    assert!(crates.len() > 10, "the crates are found");
    let cycles = crates.iter().flat_map(|root| {
        let name = root.strip_prefix(workspace).unwrap().display().to_string();
        Crate::read(root).cycles().into_iter().map(move |cycle| format!("{name}: {cycle}"))
    });
    let cycles = cycles.collect::<Vec<_>>();
    assert!(cycles.is_empty(), "modules depend on each other:\n{}", cycles.join("\n"));
}
