// Requests to the server. Who sends them is said by ?as=, and proved by a cookie.

export class Failure extends Error {
  // status is that of HTTP, or 0 if there was no answer; after is how long to wait, in ms.
  constructor(status, message, after = 0) {
    super(message);
    this.status = status;
    this.after = after;
  }

  // A later try may have another outcome.
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }

  // The server does not know us, or the room: it was started anew.
  get forgotten() {
    return this.status === 401 || this.status === 404;
  }
}

// call returns the answer, which must come within patience ms.
export async function call(method, path, as, body, patience = 10_000) {
  const options = { method, headers: {}, signal: AbortSignal.timeout(patience) };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response, answer;
  try {
    response = await fetch(address(path, { as }), options);
    answer = response.status === 204 ? null : await response.json();
  } catch {
    if (response && !response.ok) throw new Failure(response.status, response.statusText);
    throw new Failure(0, "The server cannot be reached.");
  }
  if (!response.ok) {
    const after = 1000 * Number(response.headers.get("Retry-After") ?? 0);
    throw new Failure(response.status, sentence(answer.error), after);
  }
  return answer;
}

export function address(path, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value) query.set(name, value);
  }
  return `/api/${path}?${query}`;
}

function sentence(text) {
  return text ? text[0].toUpperCase() + text.slice(1) + "." : "The server has refused this.";
}

// wait ends after ms, or when the returned promise's wake is called.
export function wait(ms) {
  let wake;
  const promise = new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
  promise.wake = wake;
  return promise;
}
