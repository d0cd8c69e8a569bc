// A browser starts no Worker for a page that was opened as a file. This one runs the worker's script in a hidden frame
// instead, so that the search of the site works without a server.
"use strict";

class FrameWorker extends EventTarget {
  constructor(address) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    frame.srcdoc = "<body></body>";
    this.inside = new Promise((resolve, reject) => {
      frame.onload = () => {
        const inside = frame.contentWindow;
        // what a worker calls: an answer goes out, further scripts come in one after the other
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
        inside.importScripts = async (...addresses) => {
          for (const next of addresses) await FrameWorker.load(inside, next);
        };
        FrameWorker.load(inside, address).then(() => resolve(inside), reject);
      };
    });
    document.body.append(frame);
  }

  static load(inside, address) {
    const script = inside.document.createElement("script");
    script.src = address;
    const loaded = new Promise((resolve, reject) => {
      script.onload = resolve;
      script.onerror = () => reject(new Error(`cannot read ${address}`));
    });
    inside.document.body.append(script);
    return loaded;
  }

  async postMessage(data) {
    const inside = await this.inside;
    inside.dispatchEvent(new inside.MessageEvent("message", { data: structuredClone(data) }));
  }
}

if (location.protocol === "file:") {
  window.Worker = FrameWorker;
  window.IFrameWorker = FrameWorker; // by this name Material's search sees that it runs in a frame
}
