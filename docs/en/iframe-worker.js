// Lets the search work on pages opened as files: browsers start no worker from a file, so it runs in a hidden frame.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement('iframe')
      frame.hidden = true
      this.ready = new Promise((resolve) => {
        frame.onload = () => {
          frame.onload = null
          const inside = frame.contentWindow
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent('message', { data }))
          const script = inside.document.createElement('script')
          script.onload = () => resolve(inside)
          script.src = new URL(url, location)
          inside.document.body.append(script)
        }
      })
      document.body.append(frame)
    }

    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new inside.MessageEvent('message', { data })))
    }
  }
}
