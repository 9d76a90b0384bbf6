//! The memory that the process may use: the least of its cgroups' limits (v2 and v1) and of what the machine has.

use std::path::Path;

/// The memory limit in bytes; `None` where none can be read.
pub(crate) fn limit() -> Option<u64> {
    if cfg!(target_os = "linux") { limit_below(Path::new("/")) } else { None }
}

/// The same in a tree of files with `proc` and whatever its `mountinfo` names.
fn limit_below(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path.trim_start_matches('/'))).ok();
    let machine = read("/proc/meminfo").and_then(|text| machine_memory(&text));
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<_> = mounts.lines().filter_map(CgroupMount::parse).collect();
    let cgroups = read("/proc/self/cgroup").unwrap_or_default();
    let limits = cgroups.lines().filter_map(|line| {
        // 0::/path for v2; 4:memory:/path for v1.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_v2 = controllers.is_empty();
        if !is_v2 && !controllers.split(',').any(|name| name == "memory") {
            return None;
        }
        let mount = mounts.iter().find(|mount| mount.is_v2 == is_v2)?;
        let file = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        // A container without a cgroup namespace sees the host's path, and its own cgroup where the hierarchy is mounted.
        let below = Path::new(path).strip_prefix(mount.root).unwrap_or(Path::new(""));
        let folders = below.ancestors().map(|folder| Path::new(mount.point).join(folder).join(file));
        folders.filter_map(|path| read(path.to_str()?)?.trim().parse::<u64>().ok()).min()
    });
    limits.chain(machine).min()
}

/// `MemTotal` of `/proc/meminfo`.
fn machine_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// A mounted hierarchy that may limit memory.
struct CgroupMount<'a> {
    /// The cgroup that is mounted.
    root: &'a str,
    point: &'a str,
    is_v2: bool,
}

impl<'a> CgroupMount<'a> {
    /// A line of `/proc/self/mountinfo`; `None` for any other mount.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut filesystem = filesystem.split(' ');
        let is_v2 = match filesystem.next()? {
            "cgroup2" => true,
            "cgroup" if filesystem.nth(1)?.split(',').any(|option| option == "memory") => false,
            _ => return None,
        };
        Some(Self { root, point, is_v2 })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder with these files, removed with the value.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("httpserver-memory-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       24684032 kB\nMemFree: 1 kB\n");
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_least_limit_on_the_way_to_the_root_counts() {
        /// Name, mounts, cgroups of the process, files below the mount, expected limit.
        type Case = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], u64);
        let cases: [Case; 7] = [
            ("v2", V2, "0::/a/b\n", &[("a/b/memory.max", "134217728\n"), ("a/memory.max", "max\n")], 128 * MIB),
            ("parent", V2, "0::/a/b\n", &[("a/b/memory.max", "max\n"), ("a/memory.max", "67108864\n")], 64 * MIB),
            ("namespace", V2, "0::/\n", &[("memory.max", "268435456\n")], 256 * MIB),
            ("v1", V1, "9:name=systemd:/\n4:memory:/x\n0::/\n", &[("memory/x/memory.limit_in_bytes", "134217728\n")], 128 * MIB),
            ("v1-none", V1, "4:memory:/\n", &[("memory/memory.limit_in_bytes", "9223372036854771712\n")], 24_684_032 << 10),
            ("none", V2, "0::/a\n", &[("a/memory.max", "max\n")], 24_684_032 << 10),
            ("unreadable", V2, "0::/a\n", &[("a/memory.max", "rubbish\n")], 24_684_032 << 10),
        ];
        for (name, mounts, cgroup, limits, expected) in cases {
            let limits: Vec<_> = limits.iter().map(|(path, text)| (format!("sys/fs/cgroup/{path}"), *text)).collect();
            let limits = limits.iter().map(|(path, text)| (path.as_str(), *text));
            let files: Vec<_> =
                [("proc/self/mountinfo", mounts), ("proc/self/cgroup", cgroup), MEMINFO].into_iter().chain(limits).collect();
            let tree = Tree::new(name, &files);
            assert_eq!(limit_below(&tree.0), Some(expected), "{name}");
        }
    }

    #[test]
    fn a_container_without_a_cgroup_namespace_has_its_limit_at_the_mount_point() {
        let mounts = V1.replace("0:32 / ", "0:32 /docker/4d ");
        for path in ["/docker/4d", "/elsewhere"] {
            let cgroup = format!("4:memory:{path}\n");
            let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n");
            let tree = Tree::new("docker", &[("proc/self/mountinfo", &mounts), ("proc/self/cgroup", &cgroup), MEMINFO, limit]);
            assert_eq!(limit_below(&tree.0), Some(64 * MIB), "{path}");
        }
    }

    #[test]
    fn nothing_to_read_is_no_limit() {
        assert_eq!(limit_below(Path::new("/nowhere/at/all")), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(limit().unwrap() > MIB);
    }
}
