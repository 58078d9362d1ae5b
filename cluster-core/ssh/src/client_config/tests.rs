//! The meaning of the files, against what ssh_config(5) says.

use std::os::unix::fs::PermissionsExt;

use aegis_types::ids::UserName;

use super::*;
use crate::HostAddress;

/// A home directory with `.ssh/config` and other files in it.
struct Home(tempfile::TempDir);

impl Home {
    fn with(config: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        home.write("config", config);
        home
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(".ssh").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn read(&self) -> Result<ClientConfig> {
        let local = LocalUser { name: "me".into(), home: self.path().to_owned() };
        ClientConfig::read(&ConfigFile::Usual(self.path().join(".ssh/config")), local)
    }

    fn settings(&self, host: &str) -> Result<HostSettings> {
        self.read().unwrap().for_host(host, None, None, "root")
    }
}

fn settings(config: &str, host: &str) -> HostSettings {
    Home::with(config).settings(host).unwrap()
}

fn refused(config: &str, host: &str) -> String {
    Home::with(config).settings(host).unwrap_err().to_string()
}

fn route(config: &str, host: &str) -> Result<Vec<String>> {
    let host = HostAddress::parse(host, false)?;
    let asked = Asked { host: &host, user: None, port: None, user_default: "root" };
    let route = Home::with(config).read()?.route(asked, false)?;
    Ok(route.into_iter().map(|hop| format!("{}@{}", hop.user, hop.endpoint)).collect())
}

#[test]
fn without_a_file_nothing_is_said_and_a_named_one_must_be_there() {
    let home = Home::with("");
    let none = home.path().join("none");
    let local = || LocalUser { name: "me".into(), home: home.path().to_owned() };
    assert!(ClientConfig::read(&ConfigFile::None, local()).is_ok());
    assert!(ClientConfig::read(&ConfigFile::Usual(none.clone()), local()).is_ok());
    assert!(ClientConfig::read(&ConfigFile::Named(none), local()).is_err());
    assert_eq!(home.settings("edge").unwrap(), HostSettings::default());
}

#[test]
fn the_first_value_wins_and_key_files_add_up() {
    let config = "Host edge\n Port 2201\n IdentityFile ~/.ssh/a\nHost e*\n Port 2202\n User ops\n \
                  IdentityFile %d/%r-%u-%h\nHost *\n User last\n IdentityFile ~/.ssh/a\n";
    let home = Home::with(config);
    let found = home.settings("edge").unwrap();
    assert_eq!((found.port, found.user.as_deref()), (Some(2201), Some("ops")));
    let expected = [home.path().join(".ssh/a"), home.path().join("ops-me-edge")];
    assert_eq!(found.identity_files.as_deref(), Some(&expected[..]));
    assert_eq!(home.settings("other").unwrap().user.as_deref(), Some("last"));
}

#[test]
fn lines_before_the_first_host_count_for_all() {
    let found = settings("User everyone\nHost edge\n User late\n", "edge");
    assert_eq!(found.user.as_deref(), Some("everyone"));
}

#[test]
fn patterns_negation_and_case() {
    let config = "Host *.lan !bad.lan\n User lan\nHost db?\n User db\nHost EDGE\n User edge\n";
    for (host, user) in [
        ("a.lan", Some("lan")),
        ("bad.lan", None),
        ("db1", Some("db")),
        ("db12", None),
        ("edge", Some("edge")),
    ] {
        assert_eq!(settings(config, host).user.as_deref(), user, "{host}");
    }
    assert_eq!(settings("Host !edge\n User x\n", "other").user, None, "negation alone matches nothing");
}

#[test]
fn host_name_takes_the_alias() {
    assert_eq!(
        settings("Host edge\n HostName %h.example.com\n", "edge").host_name.unwrap(),
        "edge.example.com"
    );
    assert!(refused("HostName %C\n", "edge").contains("%C"));
    let config = "Host edge\n HostName 127.0.0.1\nHost meta\n HostName 169.254.169.254\n";
    for host in ["edge", "meta"] {
        assert!(route(config, host).is_err(), "a file may not lead to {host} either");
    }
}

#[test]
fn match_is_judged_where_it_begins() {
    let config = "Match originalhost edge user ops\n User late\nHost edge\n HostName inner\n User ops\nMatch host \
                  inner user ops\n HostName ignored\n Port 2200\nMatch localuser me,you !host inner\n Port 1\n";
    let found = settings(config, "edge");
    assert_eq!((found.host_name.as_deref(), found.user.as_deref()), (Some("inner"), Some("ops")));
    assert_eq!(found.port, Some(2200));
    assert_eq!(settings(config, "other").port, Some(1));
    // A block's own lines do not end it.
    let found = settings("Match host edge\n HostName moved\n Port 2200\n", "edge");
    assert_eq!((found.host_name.as_deref(), found.port), (Some("moved"), Some(2200)));
}

#[test]
fn match_final_is_a_second_pass_over_the_new_name() {
    let config = "Match final host inner\n Port 2200\n User late\nHost edge\n HostName inner\n User ops\nHost inner\n \
                  IdentitiesOnly yes\n";
    let found = settings(config, "edge");
    assert_eq!((found.port, found.user.as_deref(), found.identities_only), (Some(2200), Some("ops"), true));
}

#[test]
fn nothing_is_executed_and_what_would_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let touched = dir.path().join("touched");
    let touch = format!("touch {}", touched.display());
    let command = refused(&format!("Host edge\n ProxyCommand {touch}\n"), "edge");
    assert!(command.contains("ProxyCommand") && command.contains("config line 2"), "{command}");
    let exec = format!("Match host edge exec \"{touch}\"\n Port 2200\n Compression yes\n");
    let refusal = refused(&exec, "edge");
    assert!(refusal.contains("Match exec") && refusal.contains("port"), "{refusal}");
    assert!(refused("Match tagged x\n User a\n", "edge").contains("Match tagged"));
    // Where it does not count, it does not matter.
    assert_eq!(settings(&exec, "other"), HostSettings::default());
    assert_eq!(
        settings(&format!("Match exec \"{touch}\"\n Compression yes\n"), "edge"),
        HostSettings::default()
    );
    assert_eq!(settings(&format!("Host edge\n Port 22\n{exec}"), "edge").port, Some(22));
    assert!(settings(&format!("ProxyJump none\nProxyCommand {touch}\n"), "edge").jumps.is_empty());
    assert!(settings("ProxyCommand none\nProxyJump bastion\n", "edge").jumps.is_empty());
    assert!(!touched.exists());
}

#[test]
fn includes_are_read_in_place_and_count_with_their_block() {
    let home = Home::with("Include conf.d/*.conf\nHost edge\n Include more\nHost *\n User last\n");
    home.write("conf.d/10.conf", "Host edge\n Port 2201\n");
    home.write("conf.d/20.conf", "Port 2202\n");
    home.write("conf.d/.hidden.conf", "User hidden\n");
    home.write("more", "User more\nHost other\n User never\n");
    let edge = home.settings("edge").unwrap();
    assert_eq!((edge.port, edge.user.as_deref()), (Some(2201), Some("more")));
    let other = home.settings("other").unwrap();
    assert_eq!((other.port, other.user.as_deref()), (Some(2202), Some("last")));
}

#[test]
fn include_loops_end() {
    let home = Home::with("Include a\n");
    home.write("a", "Include config\n");
    let error = home.read().unwrap_err().to_string();
    assert!(error.contains("includes itself"), "{error}");
    let home = Home::with("Include f0\n");
    for n in 0..40 {
        home.write(&format!("f{n}"), &format!("Include f{}\n", n + 1));
    }
    assert!(home.read().unwrap_err().to_string().contains("too many"));
    // Wide and not deep: every file includes all that come after it.
    let home = Home::with("Include g0\n");
    for n in 0..12 {
        home.write(&format!("g{n}"), &(n + 1..12).map(|m| format!("Include g{m}\n")).collect::<String>());
    }
    assert!(home.read().unwrap_err().to_string().contains("too many"));
}

#[test]
fn files_that_others_may_write_are_refused() {
    let home = Home::with("Host edge\n");
    let path = home.path().join(".ssh/config");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).unwrap();
    assert!(home.read().unwrap_err().to_string().contains("others may write"));
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(home.read().unwrap_err().to_string().contains("regular file"));
}

#[test]
fn bad_values_name_their_line_where_they_count() {
    for line in [
        "Port abc",
        "Port 0",
        "IdentitiesOnly maybe",
        "StrictHostKeyChecking x",
        "HostName",
        "IdentityFile k",
    ] {
        let error = refused(&format!("Host edge\n {line}\n"), "edge");
        assert!(error.contains("config line 2"), "{line}: {error}");
        assert_eq!(settings(&format!("Host edge\n {line}\n"), "other"), HostSettings::default());
    }
    for text in ["Host\n", "Match\n", "Match host\n", "User \"open\n"] {
        assert!(Home::with(text).read().is_err(), "{text:?}");
    }
    assert_eq!(settings("Compression yes\nNoSuchThing 1 2\n", "edge"), HostSettings::default());
}

#[test]
fn keys_agents_and_known_hosts() {
    let home = Home::with(
        "Host none\n IdentityFile none\n IdentityAgent none\n UserKnownHostsFile none\nHost edge\n IdentitiesOnly yes\n \
         CertificateFile ~/c\n IdentityAgent ~/agent\n UserKnownHostsFile ~/k1 /k2\n StrictHostKeyChecking no\n",
    );
    let none = home.settings("none").unwrap();
    assert_eq!(none.identity_files, Some(vec![]));
    assert_eq!((none.identity_agent, none.known_hosts), (IdentityAgent::None, Some(vec![])));
    let edge = home.settings("edge").unwrap();
    assert_eq!(edge.certificate_files, [home.path().join("c")]);
    assert_eq!(edge.identity_agent, IdentityAgent::Socket(home.path().join("agent")));
    assert_eq!(edge.known_hosts, Some(vec![home.path().join("k1"), PathBuf::from("/k2")]));
    let (strict, place) = edge.strict_host_keys.unwrap();
    assert_eq!((strict, place.line), (StrictHostKeys::No, 10));
}

#[test]
fn routes_follow_proxy_jump() {
    let config = "Host edge\n HostName 10.0.0.5\n User ops\n ProxyJump inner\nHost inner\n ProxyJump \
                  admin@outer:2222\nHost outer\n HostName outer.example.com\n";
    assert_eq!(
        route(config, "edge").unwrap(),
        ["admin@outer (outer.example.com port 2222)", "me@inner port 22", "ops@edge (10.0.0.5 port 22)"]
    );
    // Hops that are written out win over what the last of them says itself.
    let config = "Host edge\n ProxyJump a,ssh://b:2222\nHost b\n ProxyJump never\n User bee\n";
    assert_eq!(route(config, "edge").unwrap(), ["me@a port 22", "bee@b port 2222", "root@edge port 22"]);
    assert_eq!(
        route("Host edge\n ProxyJump [fd00::5]:2222\n", "edge").unwrap(),
        ["me@fd00::5 port 2222", "root@edge port 22"]
    );
}

#[test]
fn routes_that_cannot_be_are_refused() {
    for config in [
        "Host edge\n ProxyJump edge\n",
        "Host edge\n ProxyJump other\nHost other\n ProxyJump edge\n",
        "Host edge\n ProxyJump localhost\n",
        "Host edge\n ProxyJump -oProxyCommand=sh\n",
        "Host edge\n ProxyJump a:0\n",
        "Host edge\n ProxyJump a,,b\n",
        "Host edge\n User -l\n",
        "Host edge\n ProxyJump a\nHost a\n ProxyCommand nc %h\n",
    ] {
        assert!(route(config, "edge").is_err(), "{config:?}");
    }
    let loops = route("Host *\n ProxyJump edge\n", "edge").unwrap_err().to_string();
    assert!(loops.contains("loop"), "{loops}");
}

#[test]
fn an_explicit_argument_wins() {
    let home = Home::with("Host edge\n User ops\n Port 2200\nMatch user admin\n IdentitiesOnly yes\n");
    let (host, user) = (HostAddress::parse("edge", false).unwrap(), UserName::parse("admin").unwrap());
    let asked = Asked { host: &host, user: Some(&user), port: Some(22), user_default: "root" };
    let route = home.read().unwrap().route(asked, false).unwrap();
    assert_eq!((route[0].user.as_str(), route[0].endpoint.port), ("admin", 22));
    assert!(route[0].settings.identities_only);
}
