// Server-sent events: the data of each, as it comes.

export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      // A CR may be half of a line end whose LF comes with the next piece.
      const lines = (rest + value).split(/\r\n|\n|\r(?=[^])/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          yield line.slice(5).trimStart();
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
