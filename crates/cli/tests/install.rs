//! scripts/install-dom0 and scripts/install-guest, into trees in temporary directories: as often as one likes, never over what
//! is not from there, and back again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

struct Tree {
    temporary: TempDir,
    script: &'static str,
}

impl Tree {
    fn new(script: &'static str) -> Self {
        let tree = Self {
            temporary: tempfile::tempdir().expect("a temporary directory"),
            script,
        };
        for directory in ["bin", "root"] {
            fs::create_dir(tree.path(directory)).expect("a fresh directory");
        }
        for program in ["postbox-broker", "twinbft-replica", "twinbft"] {
            fs::write(tree.path("bin").join(program), program).expect("there is room");
        }
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    fn run(&self, extra: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../scripts")
            .join(self.script);
        Command::new(script)
            .arg("--bin")
            .arg(self.path("bin"))
            .arg("--root")
            .arg(self.path("root"))
            .args(extra)
            .output()
            .expect("bash is there")
    }

    fn install(&self) -> String {
        let output = self.run(&[]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Paths with content, and whether they are programs.
    fn files(&self) -> BTreeMap<String, (String, bool)> {
        let mut files = BTreeMap::new();
        let root = self.path("root");
        let mut open = vec![root.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).expect("readable").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    open.push(path);
                    continue;
                }
                let mode = fs::metadata(&path).expect("there").permissions().mode();
                let name = path
                    .strip_prefix(&root)
                    .expect("inside")
                    .display()
                    .to_string();
                let content = fs::read_to_string(&path).expect("text");
                files.insert(name, (content, mode & 0o111 != 0));
            }
        }
        files
    }
}

const SCRIPTS: [(&str, &str, &str); 2] = [
    (
        "install-dom0",
        "postbox-broker",
        "etc/default/postbox-broker",
    ),
    (
        "install-guest",
        "twinbft-replica",
        "etc/default/twinbft-replica",
    ),
];

#[test]
fn a_second_time_changes_nothing_and_an_uninstall_leaves_nothing() {
    for (script, program, _) in SCRIPTS {
        let tree = Tree::new(script);
        let dry = tree.run(&["--dry-run"]);
        assert!(dry.status.success() && tree.files().is_empty(), "{dry:?}");
        tree.install();
        let files = tree.files();
        assert_eq!(
            files[&format!("usr/bin/{program}")],
            (program.to_owned(), true)
        );
        assert!(files.contains_key(&format!("lib/systemd/system/{program}.service")));
        assert!(
            files
                .keys()
                .any(|name| name.starts_with("etc/modules-load.d/"))
        );
        assert!(
            files
                .keys()
                .any(|name| name.starts_with("lib/udev/rules.d/"))
        );
        tree.install();
        assert_eq!(tree.files(), files);
        assert!(tree.run(&["--uninstall"]).status.success());
        assert_eq!(tree.files(), BTreeMap::new());
        assert!(
            tree.run(&["--uninstall"]).status.success(),
            "as often as one likes"
        );
    }
}

#[test]
fn what_you_have_changed_is_yours_and_the_rest_is_brought_up_to_date() {
    for (script, program, conf) in SCRIPTS {
        let tree = Tree::new(script);
        tree.install();
        fs::write(tree.path("root").join(conf), "TWINBFT_HOST=7\n").expect("there is room");
        fs::write(tree.path("bin").join(program), "newer").expect("there is room");
        let said = tree.install();
        assert!(
            said.contains(&format!("kept as you have changed it: /{conf}")),
            "{said}"
        );
        let files = tree.files();
        assert_eq!(files[conf].0, "TWINBFT_HOST=7\n");
        assert_eq!(files[&format!("usr/bin/{program}")].0, "newer");
        assert!(tree.run(&["--uninstall"]).status.success());
        assert!(tree.files().contains_key(conf), "not removed either");
        tree.install();
        assert_eq!(tree.files()[conf].0, "TWINBFT_HOST=7\n");
    }
}

#[test]
fn what_is_not_from_here_is_in_the_way_and_nothing_is_done_then() {
    for (script, program, _) in SCRIPTS {
        let tree = Tree::new(script);
        let foreign = tree.path("root").join("usr/bin").join(program);
        fs::create_dir_all(foreign.parent().expect("inside")).expect("there is room");
        fs::write(&foreign, "a package's").expect("there is room");
        let before = tree.files();
        let output = tree.run(&[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(&format!("/usr/bin/{program} is there and not from here")),
            "{said}"
        );
        assert_eq!(tree.files(), before, "nothing was done");
    }
}

#[test]
fn what_they_do_not_understand_they_refuse() {
    for (script, ..) in SCRIPTS {
        let tree = Tree::new(script);
        assert_eq!(tree.run(&["--force"]).status.code(), Some(2));
        assert_eq!(
            tree.run(&["--root", "/nowhere/at/all"]).status.code(),
            Some(1)
        );
        fs::remove_file(tree.path("bin/twinbft")).expect("it was there");
        let output = tree.run(&[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("twinbft is missing"));
        assert_eq!(tree.files(), BTreeMap::new());
    }
}
