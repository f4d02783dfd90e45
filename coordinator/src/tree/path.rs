//! Which paths can be, and whose child a path is (coordination of names as ZooKeeper 3.9's `PathUtils`).

/// Whether `path` can be a node's.
pub(super) fn is_valid(path: &str) -> bool {
    if path == "/" {
        return true;
    }
    let Some(rest) = path.strip_prefix('/') else { return false };
    rest.split('/')
        .all(|part| !part.is_empty() && part != "." && part != ".." && part.chars().all(is_allowed))
}

/// Java's surrogates, private use and control characters are not.
const fn is_allowed(c: char) -> bool {
    !matches!(c as u32, 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..)
}

/// The parent's path, and the name under it; `None` for the root and what has no slash.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    let (parent, name) = path.rsplit_once('/')?;
    if path == "/" {
        return None;
    }
    Some((if parent.is_empty() { "/" } else { parent }, name))
}

/// The path of a child.
pub(super) fn join(parent: &str, name: &str) -> String {
    if parent == "/" { format!("/{name}") } else { format!("{parent}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_a_path() {
        for good in ["/", "/a", "/a/b.c", "/a/...", "/ä/日本"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "a", "/a/", "//", "/a//b", "/./a", "/a/..", "/a\u{0}", "/a\u{9f}", "/\u{e000}", "/😀"]
        {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }

    #[test]
    fn parents() {
        assert_eq!(split("/"), None);
        assert_eq!(split("/a"), Some(("/", "a")));
        assert_eq!(split("/a/b"), Some(("/a", "b")));
        assert_eq!(join("/", "a"), "/a");
    }
}
