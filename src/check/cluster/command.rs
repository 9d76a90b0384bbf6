//! Runs the user's own `kubectl` (and `istioctl`, when asked to): without a shell, bounded in time and size.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use crate::check::cluster::ClusterArgs;
use crate::text::plain;

/// How long one command may take. A credential plugin may have to ask somebody first.
const TIME: Duration = Duration::from_secs(20);

/// The longest output that is read, bytes: some ten thousand objects.
const SIZE: u64 = 48 << 20;

/// The exit code of `istioctl analyze` that found errors: its output lists them.
const FOUND: i32 = 79;

/// Why a command brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CommandError {
    /// The program is not there.
    NotInstalled(String),
    /// The API server does not have this kind.
    NoSuchKind,
    /// The user may not read it.
    Forbidden,
    /// There is no object of this name.
    NotFound,
    TimedOut,
    TooLarge,
    /// The first line of what it wrote to standard error.
    Failed(String),
}

impl std::fmt::Display for CommandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotInstalled(program) => write!(f, "{program} is not in PATH"),
            Self::NoSuchKind => f.write_str("the cluster does not have this kind"),
            Self::Forbidden => f.write_str("no permission"),
            Self::NotFound => f.write_str("not found"),
            Self::TimedOut => write!(f, "no answer within {} s", TIME.as_secs()),
            Self::TooLarge => write!(f, "more than {} MiB", SIZE >> 20),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl CommandError {
    fn of(stderr: &str) -> Self {
        if stderr.contains("the server doesn't have a resource type") || stderr.contains("could not find the requested resource")
        {
            Self::NoSuchKind
        } else if stderr.contains("(Forbidden)") || stderr.contains("(Unauthorized)") {
            Self::Forbidden
        } else if stderr.contains("(NotFound)") {
            Self::NotFound
        } else {
            // Discovery writes log lines of its own, with a time in front, before the line that counts.
            let line = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it failed without a word");
            Self::Failed(plain(line.trim()).into_owned())
        }
    }
}

/// One program with the options that choose the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    program: &'static str,
    options: Vec<String>,
}

impl Tool {
    pub(crate) fn new(program: &'static str, args: &ClusterArgs) -> Self {
        let context = args.context.iter().flat_map(|context| ["--context".to_owned(), context.clone()]);
        let kubeconfig = args.kubeconfig.iter().flat_map(|file| ["--kubeconfig".to_owned(), file.display().to_string()]);
        Self { program, options: context.chain(kubeconfig).collect() }
    }

    /// The command as a user would type it.
    pub(crate) fn line(&self, words: &[&str]) -> String {
        let words = words.iter().copied().chain(self.options.iter().map(String::as_str));
        let words: Vec<String> = words.map(crate::text::quoted).collect();
        format!("{} {}", self.program, words.join(" "))
    }

    /// Runs it and returns its standard output.
    ///
    /// # Errors
    /// It is not installed, failed, took too long or wrote too much.
    pub(crate) async fn run(&self, words: &[&str]) -> Result<Vec<u8>, CommandError> {
        let mut command = Command::new(self.program);
        command.args(words).args(&self.options).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CommandError::NotInstalled(self.program.to_owned()),
            _ => CommandError::Failed(error.to_string()),
        })?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let all = async {
            let (out, err) = tokio::join!(read(out, SIZE), read(err, SIZE));
            (out, err, child.wait().await)
        };
        let Ok((out, err, status)) = timeout(TIME, all).await else { return Err(CommandError::TimedOut) };
        if out.len() as u64 > SIZE {
            return Err(CommandError::TooLarge);
        }
        match status {
            Ok(status) if status.success() || status.code() == Some(FOUND) => Ok(out),
            Ok(_) => Err(CommandError::of(&String::from_utf8_lossy(&err))),
            Err(error) => Err(CommandError::Failed(error.to_string())),
        }
    }
}

/// Reads one byte more than `limit` at most: then the pipe is closed, and the writer ends.
async fn read(pipe: Option<impl AsyncRead + Unpin>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.take(limit + 1).read_to_end(&mut bytes).await;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_refuses_is_known_by_its_words() {
        for (stderr, error) in [
            ("error: the server doesn't have a resource type \"foos\"", CommandError::NoSuchKind),
            ("Error from server (Forbidden): pods is forbidden: User \"x\" cannot list resource", CommandError::Forbidden),
            ("Error from server (NotFound): secrets \"nope\" not found", CommandError::NotFound),
            (
                "E1125 memcache.go:265] couldn't get\nThe connection to the server was refused\n",
                CommandError::Failed("The connection to the server was refused".into()),
            ),
        ] {
            assert_eq!(CommandError::of(stderr), error);
        }
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let tool = Tool { program: "kubectl-that-nobody-has", options: Vec::new() };
        let error = tool.run(&["get", "pods"]).await.unwrap_err();
        assert_eq!(error.to_string(), "kubectl-that-nobody-has is not in PATH");
    }

    #[tokio::test]
    async fn what_analyze_found_is_output_and_no_failure() {
        let tool = Tool { program: "sh", options: Vec::new() };
        assert_eq!(tool.run(&["-c", "echo '[]'; exit 79"]).await.unwrap(), b"[]\n");
        assert!(tool.run(&["-c", "echo '[]'; exit 64"]).await.is_err());
    }

    #[tokio::test]
    async fn a_word_is_an_argument_and_never_a_command() {
        let tool = Tool { program: "echo", options: Vec::new() };
        let out = tool.run(&["$(id)", ";", "a b"]).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "$(id) ; a b\n");
    }
}
