// What a script says to the test that started it, and asks of it: see page_browser_test.go.
import { createInterface } from "node:readline";

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// lab asks the test, by name, for what happens elsewhere than in the page, and ends when it has happened.
export async function lab(ask, argument = "") {
  console.log(JSON.stringify({ ask, argument }));
  const { done } = await answers.next();
  if (done) throw new Error(`the lab has gone at: ${ask}`);
}

export const tell = (text) => console.log(JSON.stringify({ tell: text }));
