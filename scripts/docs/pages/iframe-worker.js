// Browsers refuse workers to pages that are opened from a disk. There the search runs in a hidden frame of the page, which has its origin.
if (location.protocol === "file:") {
  const loaded = (window_, url) =>
    new Promise((done, failed) => {
      const script = window_.document.createElement("script");
      Object.assign(script, { src: url, onload: done, onerror: failed });
      window_.document.body.append(script);
    });
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = Object.assign(document.createElement("iframe"), { hidden: true, srcdoc: "<body></body>" });
      this.ready = new Promise((done) => {
        frame.onload = () => {
          const inside = frame.contentWindow;
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          inside.importScripts = (...urls) => urls.reduce((before, next) => before.then(() => loaded(inside, next)), Promise.resolve());
          loaded(inside, new URL(url, location.href).href).then(() => done(inside));
        };
      });
      document.body.append(frame);
    }
    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }
    terminate() {}
  };
}
