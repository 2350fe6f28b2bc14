// What joins a mesh. Values in, values out.

// joining takes what people have at hand: a URL, a host's name, or the whole line that joins a computer, which has the key, too.
export function joining(text: string, key: string): { control: string; authKey?: string } {
  const url = /--login-server[= ](\S+)/.exec(text)?.[1] ?? text.trim();
  const authKey = key.trim() || /--auth-?key[= ](\S+)/.exec(text)?.[1];
  return { control: /^https?:\/\//.test(url) ? url : `https://${url}`, ...(authKey ? { authKey } : {}) };
}
