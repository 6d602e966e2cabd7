// What scripts add to the page: a queue of uploads, each of which is refused before it is sent if there is no room for it, and figures
// that follow. The server makes all markup of files and figures: this asks for it again, and merges what has changed.

const find = (selector, within = document) => within.querySelector(selector)
const queue = find("#queue"), files = find("#files"), input = find("#chosen"), zone = find("#send")
const uploads = []

/** Tells a screen reader. The same text twice is no change, so it is emptied first. */
function tell(region, text) {
  region.textContent = ""
  setTimeout(() => { region.textContent = text }, 50)
}
const say = (text) => tell(find("#said"), text)
const warn = (text) => tell(find("#warned"), text)

/** Said once, however often it is set. */
function notice(text) {
  if (find("#notice span").textContent === text) return
  find("#notice span").textContent = text
  find("#notice").hidden = !text
}

/** As the server writes sizes. */
function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
  while (bytes >= 1024 && units.length > 1) {
    bytes /= 1024
    units.shift()
  }
  return `${units[0] === "B" ? Math.round(bytes) : bytes.toFixed(1)} ${units[0]}`
}

const path = (name) => `/files/${encodeURIComponent(name)}`
const stored = (name) => [...files.children].find((row) => row.dataset.name === name)
const parse = (text) => new DOMParser().parseFromString(text, "text/html")

/** Why the server did not do something, in its words. */
function reason(status, text) {
  if (status === 401) return "You are signed out. Sign in again in another tab, then retry."
  const why = [...parse(text).querySelectorAll(".why")].map((line) => line.textContent)
  return why.join(" ").trim() || `The server answered ${status}.`
}

/**
 * Makes an element like another, and keeps every element that both have, so that focus stays, and the place of a screen reader.
 * Children are told apart by their ids. An element with children has no text of its own.
 */
function become(old, fresh) {
  if (old.isEqualNode(fresh)) return
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name)
  for (const { name, value } of fresh.attributes) old.setAttribute(name, value)
  const wanted = [...fresh.children]
  if (!wanted.length && !old.children.length) {
    old.textContent = fresh.textContent
    return
  }
  const ids = new Set(wanted.map((child) => child.id))
  for (const child of [...old.children]) if (!ids.has(child.id)) child.remove()
  let at = old.firstElementChild
  for (const child of wanted) {
    if (at && at.id === child.id && at.nodeName === child.nodeName) {
      become(at, child)
      at = at.nextElementSibling
    } else {
      old.insertBefore(child, at)
    }
  }
  while (at) {
    const gone = at
    at = at.nextElementSibling
    gone.remove()
  }
}

async function ask(path, method = "GET", body) {
  const asking = fetch(path, { method, body, headers: { accept: "text/html" } })
  const answer = await asking.catch(() => { throw new Error("The server does not answer.") })
  const text = await answer.text()
  if (!answer.ok) throw new Error(reason(answer.status, text))
  return text
}

let isLost = false
/** Says why the figures are old, until they can be read again. */
function lose(error) {
  isLost = true
  notice(error.message)
}

/** Shows the figures as they are now, and `from` the page "/" the files too. */
async function refresh(from = "/room") {
  const page = parse(await ask(from))
  if (isLost) notice("")
  isLost = false
  for (const id of ["room", "stored"]) {
    const fresh = page.getElementById(id)
    if (fresh) become(document.getElementById(id), fresh)
  }
}

/** Asks whether the server would admit these uploads, one after the other, and returns what it says of each. */
async function preflight(asked) {
  const files = asked.map(({ file: { name, size } }) => ({ name, size }))
  return JSON.parse(await ask("/preflight", "POST", JSON.stringify({ files }))).files
}

/** An upload in the queue: waiting, sending, storing, refused, or cancelled. */
class Upload {
  constructor(file) {
    this.file = file
    this.row = document.importNode(find("#upload").content.firstElementChild, true)
    this.bar = find("progress", this.row)
    this.bar.setAttribute("aria-label", file.name)
    find(".name", this.row).textContent = find(".name", this.row).title = file.name
    this.button(".cancel", "Cancel", () => { if (this.state !== "storing") this.aborting.abort() })
    this.button(".retry", "Retry", () => { this.wait(); run() })
    this.button(".dismiss", "Dismiss", () => this.leave(input))
    queue.append(this.row)
    this.wait()
  }

  button(selector, label, action) {
    const button = find(selector, this.row)
    button.setAttribute("aria-label", `${label} ${this.file.name}`)
    button.onclick = action
  }

  show(state, text) {
    const over = state === "refused" || state === "cancelled"
    const focused = document.activeElement
    this.state = this.row.dataset.state = state
    find(".state", this.row).textContent = text
    this.row.classList.toggle("over", over)
    this.bar.hidden = over || state === "waiting"
    for (const name of ["cancel", "retry", "dismiss"]) find(`.${name}`, this.row).hidden = (name === "cancel") === over
    // The server has all of it, and stores it.
    find(".cancel", this.row).setAttribute("aria-disabled", state === "storing")
    if (focused.hidden && this.row.contains(focused)) find(over ? ".retry" : ".cancel", this.row).focus()
  }

  wait() {
    this.aborting = new AbortController()
    this.aborting.signal.onabort = () => { if (this.state === "waiting") this.cancel() }
    this.bar.value = 0
    this.show("waiting", `Waiting, ${size(this.file.size)}`)
  }

  cancel() {
    this.show("cancelled", "Cancelled")
    say(`${this.file.name} is cancelled.`)
  }

  refuse(why) {
    this.show("refused", why)
    warn(`${this.file.name} is not stored. ${why}`)
  }

  /** Leaves the queue. Its focus goes to `next`. */
  leave(next) {
    const hadFocus = this.row.contains(document.activeElement)
    this.row.remove()
    uploads.splice(uploads.indexOf(this), 1)
    find("#uploads").hidden = !uploads.length
    if (hadFocus) next?.focus()
  }

  /** How large the file is that it replaces, as far as the page knows. */
  get replaced() { return Number(stored(this.file.name)?.dataset.size ?? 0) }

  /** Why the preflight refuses it, by the figures on the page if they tell, and after others that take `before` bytes. */
  explain(reason, before = 0) {
    const needed = this.file.size
    for (const gauge of document.querySelectorAll("#room [data-left]")) {
      const isDisk = gauge.id === "disk"
      if (reason !== (isDisk ? "disk_full" : "quota_exceeded")) continue
      // What is replaced stays on the disk until the new file is complete.
      const left = Number(gauge.dataset.left) + (isDisk ? 0 : this.replaced), rest = Math.max(left - before, 0)
      if (needed <= rest) continue
      const has = needed > left ? `${size(left)} left` : `${size(rest)} left after the files before it`
      const advice = needed > gauge.dataset.limit
        ? "It can never fit: choose a smaller file."
        : "Delete files that are no longer needed and retry, or choose a smaller file."
      return `It has ${size(needed)}, and ${gauge.dataset.of} has ${has}, so it was not sent. ${advice}`
    }
    const full = { disk_full: "The disk", quota_exceeded: "The quota" }[reason]
    return full
      ? `${full} has no room for it, so it was not sent. Delete files that are no longer needed and retry.`
      : "The server cannot tell right now whether there is room for it, so it was not sent. Retry in a moment."
  }

  async run() {
    const { signal } = this.aborting
    this.show("sending", "Looking for room")
    try {
      const [{ fits, reason }] = await preflight([this])
      signal.throwIfAborted()
      if (!fits) {
        await refresh().catch(lose)
        this.refuse(this.explain(reason))
        return
      }
      await this.send(signal)
    } catch (error) {
      if (signal.aborted) this.cancel()
      else this.refuse(error.message)
      return
    } finally {
      await refresh("/").catch(lose)
    }
    say(`${this.file.name} is stored.`)
    this.leave(find("a", stored(this.file.name) ?? files) ?? input)
  }

  /** By XMLHttpRequest, because fetch does not tell how much it has sent. */
  send(signal) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest()
      const pace = new Pace()
      const draw = () => this.draw(pace)
      // It falls to zero when nothing is sent any more.
      const ticking = setInterval(draw, 1000)
      const end = (settle, value) => { clearInterval(ticking); settle(value) }
      signal.onabort = () => request.abort()
      request.upload.onprogress = ({ loaded }) => { pace.add(loaded); draw() }
      request.upload.onload = () => { clearInterval(ticking); this.bar.value = 1; this.show("storing", "Storing") }
      request.onload = () => request.status < 300
        ? end(resolve)
        : end(reject, new Error(reason(request.status, request.responseText)))
      request.onerror = () => end(reject, new Error("The connection was lost, or the file has changed. Retry, or choose it again."))
      request.onabort = () => end(reject, signal.reason)
      request.open("PUT", path(this.file.name))
      request.setRequestHeader("accept", "text/html")
      request.send(this.file)
      draw()
    })
  }

  draw(pace) {
    const { size: total } = this.file, sent = pace.sent, speed = pace.speed()
    this.bar.value = sent / Math.max(total, 1)
    const left = speed > 0 ? `, ${time((total - sent) / speed)} left` : ""
    this.show("sending", `${size(sent)} of ${size(total)}, ${size(speed)}/s${left}`)
  }
}

/** Bytes per second, over the last three seconds. */
class Pace {
  points = [{ at: performance.now(), sent: 0 }]

  get sent() { return this.points.at(-1).sent }

  add(sent) { this.points.push({ at: performance.now(), sent }) }

  speed() {
    const now = performance.now()
    while (this.points.length > 1 && this.points[1].at < now - 3000) this.points.shift()
    const [{ at, sent }] = this.points
    return (this.sent - sent) / Math.max((now - at) / 1000, 0.1)
  }
}

const time = (seconds) => seconds < 60 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`

let isRunning = false
/** Sends what waits, one after the other. */
async function run() {
  if (isRunning) return
  isRunning = true
  for (let next; (next = uploads.find((upload) => upload.state === "waiting"));) await next.run()
  isRunning = false
}

async function add(chosen) {
  find("#uploads").hidden = !uploads.length && !chosen.length
  uploads.push(...chosen.map((file) => new Upload(file)))
  await refuseEarly().catch(lose)
  run()
}

/** Refuses what would not fit after the files before it. Each is asked about again before it is sent. */
async function refuseEarly() {
  // So many names fit into a list.
  const waiting = uploads.filter((upload) => upload.state === "waiting").slice(0, 200)
  const [answers] = await Promise.all([preflight(waiting), refresh()])
  let before = 0
  answers.forEach(({ fits, reason }, at) => {
    const upload = waiting[at]
    if (fits) before += upload.file.size - upload.replaced
    else if (upload.state === "waiting") upload.refuse(upload.explain(reason, before))
  })
}

input.onchange = () => {
  add([...input.files])
  input.value = ""
}

addEventListener("dragover", (event) => {
  event.preventDefault()
  zone.classList.add("over")
})
addEventListener("dragleave", (event) => { if (!event.relatedTarget) zone.classList.remove("over") })
addEventListener("drop", (event) => {
  event.preventDefault()
  zone.classList.remove("over")
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file")
  const isFolder = (item) => item.webkitGetAsEntry?.()?.isDirectory
  notice(items.some(isFolder) ? "Folders are not uploaded: drop the files that are in them." : "")
  add(items.filter((item) => !isFolder(item)).map((item) => item.getAsFile()))
})

addEventListener("beforeunload", (event) => {
  if (uploads.some((upload) => ["waiting", "sending", "storing"].includes(upload.state))) event.preventDefault()
})

files.addEventListener("submit", async (event) => {
  event.preventDefault()
  const row = event.target.closest("li"), { name } = row.dataset
  const next = row.nextElementSibling ?? row.previousElementSibling
  find("dialog", row).hidePopover()
  try {
    await ask(path(name), "DELETE")
    await refresh("/")
  } catch (error) {
    notice(`${name} is not deleted. ${error.message}`)
    return
  }
  say(`${name} is deleted.`)
  ;(next ? find("button", next) : input).focus()
})

/** The figures of others' uploads, too. */
async function follow() {
  if (!document.hidden) await refresh().catch(lose)
  setTimeout(follow, 2000)
}
setTimeout(follow, 2000)
