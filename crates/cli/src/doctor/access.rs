//! Whether this user may read and write a device, and what to do if not.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::Access;
use rustix::io::Errno;

/// Who may do what with a file, and who asks.
#[derive(Debug, Clone)]
struct Owned {
    mode: u32,
    owner: String,
    group: String,
    group_is_root: bool,
    is_device: bool,
    user: String,
}

/// What stands in the way of this user's reading and writing a file, and what to do. Nothing is
/// opened: to open a device for writing would be more than a look.
pub(super) fn hindrance(path: &Path, metadata: &Metadata) -> Option<(String, String)> {
    match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => None,
        Err(Errno::ROFS) => Some((
            "its file system is mounted read-only".to_owned(),
            format!("mount what {} lies on for writing", path.display()),
        )),
        Err(_) => Some(owned(metadata).hindrance(path)),
    }
}

fn owned(metadata: &Metadata) -> Owned {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let user = rustix::process::geteuid().as_raw();
    Owned {
        mode: metadata.mode() & 0o777,
        owner: name_of(&users, metadata.uid()),
        group: name_of(&groups, metadata.gid()),
        group_is_root: metadata.gid() == 0,
        is_device: metadata.file_type().is_char_device(),
        user: name_of(&users, user),
    }
}

/// The name of a user or group in /etc/passwd or /etc/group; others are told by their number.
fn name_of(names: &str, number: u32) -> String {
    let found = names.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(number)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| number.to_string())
}

impl Owned {
    fn hindrance(&self, path: &Path) -> (String, String) {
        let Self { mode, owner, group, user, .. } = self;
        let found = format!(
            "user {user} may not read and write it: it has mode {mode:04o} and is {owner}:{group}'s"
        );
        let path = path.display();
        let or_root = if owner == "root" { "" } else { " or root" };
        let advice = if mode & 0o060 == 0o060 && !self.group_is_root {
            format!("join its group and log in anew: `usermod -aG {group} {user}`, as root")
        } else if self.is_device {
            "give it to a group that the pool's users are in, with a udev rule such as \
             `SUBSYSTEM==\"dax\", GROUP=\"maru\", MODE=\"0660\"` in /etc/udev/rules.d"
                .to_owned()
        } else {
            format!(
                "give it to a group that the pool's users are in: `chgrp GROUP {path}` and \
                 `chmod g+rw {path}`, as {owner}{or_root}"
            )
        };
        (found, advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up() {
        let groups = "root:x:0:\nbroken\ncxl:x:987:ann,bob\n";
        assert_eq!(name_of(groups, 987), "cxl");
        assert_eq!(name_of(groups, 988), "988");
    }

    #[test]
    fn who_may_not_is_told_how_he_may() {
        let root = Owned {
            mode: 0o600,
            owner: "root".to_owned(),
            group: "root".to_owned(),
            group_is_root: true,
            is_device: true,
            user: "ann".to_owned(),
        };
        let cxl =
            Owned { mode: 0o660, group: "cxl".to_owned(), group_is_root: false, ..root.clone() };
        let file = Owned { is_device: false, ..root.clone() };
        for (owned, advice) in
            [(&root, "udev"), (&cxl, "usermod -aG cxl ann"), (&file, "chmod g+rw /p")]
        {
            let (found, told) = owned.hindrance(Path::new("/p"));
            assert!(told.contains(advice), "{told}");
            assert!(
                found.starts_with("user ann may not") && found.contains(&owned.group),
                "{found}"
            );
        }
        assert!(root.hindrance(Path::new("/p")).0.contains("mode 0600 and is root:root's"));
    }
}
