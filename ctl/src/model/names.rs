//! Names of networks, ports and interfaces, and paths of sockets: what the kernel and the command line can carry.
//!
//! Bounds: `IFNAMSIZ` (16 with its NUL) for interfaces, `sun_path` (108 with its NUL) for sockets.

use super::{ModelError, shown};

/// The longest name of a network or a port, in bytes.
const NAME_MAX: usize = 64;
/// The longest name of an interface, in bytes (`IFNAMSIZ` less its NUL).
const INTERFACE_MAX: usize = 15;
/// The longest path of a socket, in bytes (`sun_path` less its NUL).
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// Checks the name of a network or port (`what` says which): 1 to 64 of `A-Z a-z 0-9 . _ -`, not starting with `-`.
///
/// # Errors
/// The name is empty, too long, or has another character in it.
pub fn check_name(what: &str, name: &str) -> Result<(), ModelError> {
    let error = |why: &str| Err(ModelError::new(format!("{what} name {}: {why}", shown(name))));
    if name.is_empty() {
        return error("is empty");
    }
    if name.len() > NAME_MAX {
        return error(&format!("has {} bytes, at most {NAME_MAX} are possible", name.len()));
    }
    if name.starts_with('-') {
        return error("must not start with '-'");
    }
    if name == "." || name == ".." {
        return error("names a directory");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return error("only letters, digits, '.', '_' and '-' are possible");
    }
    Ok(())
}

/// Checks the name of a kernel interface as `dev_valid_name` does, and refuses `%`, which the kernel would expand.
///
/// # Errors
/// The kernel would not take the name, or would take it for another.
pub fn check_interface(name: &str) -> Result<(), ModelError> {
    let error = |why: &str| Err(ModelError::new(format!("interface name {}: {why}", shown(name))));
    if name.is_empty() {
        return error("is empty");
    }
    if name.len() > INTERFACE_MAX {
        return error(&format!("has {} bytes, the kernel takes at most {INTERFACE_MAX}", name.len()));
    }
    if name == "." || name == ".." {
        return error("names a directory");
    }
    if let Some(c) = name.chars().find(|c| !c.is_ascii_graphic() || "/:%".contains(*c)) {
        return error(&format!("{} is not possible in it", shown(&c.to_string())));
    }
    Ok(())
}

/// Checks the path of a socket: absolute, at most 107 bytes, naming a file.
///
/// # Errors
/// The path is relative, too long for `sun_path`, has a NUL in it, or ends in a slash.
pub fn check_socket_path(path: &str) -> Result<(), ModelError> {
    let error = |why: &str| Err(ModelError::new(format!("socket path {}: {why}", shown(path))));
    if path.is_empty() {
        return error("is empty");
    }
    if path.len() > SOCKET_PATH_MAX {
        return error(&format!("has {} bytes, a socket's path has at most {SOCKET_PATH_MAX}", path.len()));
    }
    if path.chars().any(char::is_control) {
        return error("has a control character in it");
    }
    if !path.starts_with('/') {
        return error("is not absolute");
    }
    if path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..") {
        return error("names a directory");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "vif1.0", "xenbr0", "A_b-c.d", "0", &"n".repeat(64)] {
            assert_eq!(check_name("port", good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "is empty"),
            (&*"n".repeat(65), "65 bytes"),
            ("-a", "start with '-'"),
            ("..", "directory"),
            ("a b", "only letters"),
            ("a/b", "only letters"),
            ("é", "only letters"),
            ("a\n", "only letters"),
        ] {
            let message = check_name("port", bad).unwrap_err().to_string();
            assert!(message.starts_with("port name ") && message.contains(why), "{message}");
            assert!(!message.contains('\n'));
        }
    }

    #[test]
    fn interfaces() {
        for good in ["eth0", "vif1.0", "exactly15bytes_", "a-b"] {
            assert_eq!(check_interface(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "is empty"),
            ("sixteen_bytes___", "16 bytes"),
            ("a/b", "'/'"),
            ("a b", "' '"),
            ("tap%d", "'%'"),
            ("a:b", "':'"),
            (".", "directory"),
            ("é", "'é'"),
        ] {
            let message = check_interface(bad).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn socket_paths() {
        let longest = format!("/{}", "p".repeat(106));
        for good in ["/run/weft/vif1.0.sock", &longest, "/a b"] {
            assert_eq!(check_socket_path(good), Ok(()), "{good}");
        }
        let too_long = format!("/{}", "p".repeat(107));
        for (bad, why) in [
            ("", "is empty"),
            (&*too_long, "108 bytes"),
            ("a.sock", "not absolute"),
            ("/run/", "directory"),
            ("/run/..", "directory"),
            ("/a\0b", "control"),
        ] {
            let message = check_socket_path(bad).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }
}
