//! Machines as far as networks and mounts go, made of namespaces. The test's own machine has no part in them: it gets no interface, no
//! address and no mount, and all is gone when the process ends that holds it, which ends with the test.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use obsdiff_tests::not_tested;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Whether this process may make hosts; says so where it may not.
#[track_caller]
pub(crate) fn available() -> bool {
    let tried = Command::new("unshare").args(["--net", "--mount", "ip", "link", "set", "lo", "up"]).output();
    let problem = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    not_tested(format!("this test needs root, and ip of iproute2: {problem}"));
    false
}

/// Namespaces for network and mounts.
pub(crate) struct Host(Child);

impl Host {
    /// A host whose only interface is the loopback.
    pub(crate) fn new() -> Self {
        // It ends when its input does, so at the latest with the test.
        let script = "ip link set lo up && echo ready && exec cat";
        let mut child = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "no host");
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// A command on this host, in a folder. It becomes the process that is started.
    pub(crate) fn command(&self, folder: &Path, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let target = format!("--target={}", self.pid());
        command.args([&target, "--net", "--mount", "env", "--chdir"]).arg(folder).arg(program);
        command
    }

    /// Runs words as a command, which has to go well.
    pub(crate) fn run(&self, words: &str) {
        let mut command = self.command(Path::new("/"), "env");
        let output = command.args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What `make` gives on this host.
    pub(crate) fn within<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        // Only its own thread moves, and ends.
        let moved = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            make()
        };
        thread::scope(|scope| scope.spawn(moved).join().unwrap())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Hosts that reach each other, at 10.0.0.1, 10.0.0.2 and so on.
pub(crate) struct Network {
    switch: Host,
    hosts: Vec<Host>,
}

impl Network {
    /// A network without hosts.
    pub(crate) fn new() -> Self {
        let switch = Host::new();
        switch.run("ip link add bridge type bridge");
        switch.run("ip link set bridge up");
        Self { switch, hosts: Vec::new() }
    }

    /// Plugs in one more host.
    pub(crate) fn add(&mut self) -> usize {
        let host = Host::new();
        let index = self.hosts.len();
        self.switch.run(&format!("ip link add port{index} type veth peer name eth0 netns {}", host.pid()));
        self.adopt(host)
    }

    /// Takes in a host whose `eth0` is there already, and so is its port.
    pub(crate) fn adopt(&mut self, host: Host) -> usize {
        let index = self.hosts.len();
        host.run(&format!("ip address add {}/24 dev eth0", self.address(index)));
        host.run("ip link set eth0 up");
        self.switch.run(&format!("ip link set port{index} master bridge up"));
        self.hosts.push(host);
        index
    }

    pub(crate) fn switch(&self) -> &Host {
        &self.switch
    }

    pub(crate) fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    pub(crate) fn hosts(&self) -> usize {
        self.hosts.len()
    }

    pub(crate) fn address(&self, index: usize) -> String {
        format!("10.0.0.{}", index + 1)
    }

    /// Nothing gets to this host or comes from it any more, without any notice.
    pub(crate) fn cut(&self, index: usize) {
        self.switch.run(&format!("ip link set port{index} down"));
    }

    pub(crate) fn heal(&self, index: usize) {
        self.switch.run(&format!("ip link set port{index} up"));
    }
}
