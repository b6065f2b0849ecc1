//! Chromium, driven over its DevTools protocol: JSON messages that end with a zero byte, on two pipes.
#![allow(dead_code, unreachable_pub)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// Names that Chromium has on different systems.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Nothing that a page is waited for takes so long, on a busy machine either.
const LONG: Duration = Duration::from_secs(240);

/// The name of Chromium on this system, if it is there.
pub fn chromium() -> Option<&'static str> {
    NAMES
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// A headless Chromium with one page.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    session: Value,
    calls: u64,
    /// Errors of the page's script, and what its content security policy has refused.
    pub problems: Vec<String>,
}

impl Browser {
    /// One with an empty page, whose profile and pipes lie in `folder`.
    pub fn start(name: &str, folder: &Path) -> Self {
        let pipes = [folder.join("to-browser"), folder.join("from-browser")];
        assert!(Command::new("mkfifo").args(&pipes).status().unwrap().success());
        let child = Command::new("sh")
            .args([
                "-c",
                "exec \"$0\" --headless --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe \
                          --user-data-dir=\"$3\" about:blank 3<\"$1\" 4>\"$2\"",
            ])
            .arg(name)
            .args(&pipes)
            .arg(folder.join("profile"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = fs::OpenOptions::new().write(true).open(&pipes[0]).unwrap();
        let mut out = BufReader::new(File::open(&pipes[1]).unwrap());
        let (messages, from) = mpsc::channel();
        // It ends with the process.
        thread::spawn(move || {
            let mut message = Vec::new();
            while out.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                let Ok(message) = serde_json::from_slice(&std::mem::take(&mut message)) else { return };
                if messages.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self { child, to, from, session: Value::Null, calls: 0, problems: Vec::new() };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].take();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Calls a method of the protocol, and gives its result.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut call = json!({ "id": self.calls, "method": method, "params": params });
        if !self.session.is_null() {
            call["sessionId"] = self.session.clone();
        }
        self.to.write_all(call.to_string().as_bytes()).unwrap();
        self.to.write_all(b"\0").unwrap();
        loop {
            let mut message = self.from.recv_timeout(LONG).unwrap_or_else(|e| panic!("{method}: {e}"));
            if message["id"] == self.calls {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
            let security = message["params"]["entry"]["source"] == "security";
            if message["method"] == "Runtime.exceptionThrown" || security {
                self.problems.push(message["params"].to_string());
            }
        }
    }

    /// Opens a page.
    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    /// The value of an expression of the page; of a promise, when it is kept.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    /// Waits until an expression of the page is true.
    pub fn until(&mut self, expression: &str) {
        self.value(&format!(
            "new Promise((done) => {{ const look = () => ({expression}) ? done(true) : setTimeout(look, 50); look(); }})"
        ));
    }

    /// Shows the page on a screen so wide, in light or dark colours.
    pub fn look(&mut self, width: u32, dark: bool) {
        let screen = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", screen);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Shows the page as it is printed on paper so wide, of a user who likes light or dark colours.
    pub fn paper(&mut self, width: u32, dark: bool) {
        self.look(width, dark);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "media": "print", "features": features }));
    }

    /// The page as a PDF file of A4 pages, in Base64.
    pub fn pdf(&mut self) -> String {
        let params = json!({ "paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": false });
        self.call("Page.printToPDF", params)["data"].as_str().unwrap().to_owned()
    }

    /// Presses a key and lets it go, by its name in the DOM.
    pub fn key(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            " " => 32,
            "End" => 35,
            "Home" => 36,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => panic!("the code of {key} is not known here"),
        };
        let mut event = json!({ "type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code });
        match key {
            "Enter" => event["text"] = "\r".into(),
            " " => event["text"] = " ".into(),
            _ => {}
        }
        self.call("Input.dispatchKeyEvent", event.clone());
        event["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", event);
    }

    /// Asks pages for less motion, or not to hold back.
    pub fn reduce_motion(&mut self, reduce: bool) {
        let wish = if reduce { "reduce" } else { "no-preference" };
        let features = json!([{ "name": "prefers-reduced-motion", "value": wish }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// A picture of the whole page, as a PNG file in Base64.
    pub fn picture(&mut self) -> String {
        let params = json!({ "captureBeyondViewport": true, "format": "png" });
        self.call("Page.captureScreenshot", params)["data"].as_str().unwrap().to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
