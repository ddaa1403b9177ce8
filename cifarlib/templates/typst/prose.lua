-- Prose of notebooks on its way from Markdown to Typst, through pandoc.

-- Each notebook cell arrives as a Div; a comment marks its end.
function Div(div)
  if div.classes:includes("cell") then
    div.content:insert(pandoc.RawBlock("typst", "//end of cell"))
    return div.content
  end
end

-- “Table IV” stays on one line.
function Link(link)
  if link.target:sub(1, 1) == "#" then
    return link:walk({
      Space = function()
        return pandoc.Str("\u{a0}")
      end,
    })
  end
end

local function quote(text)
  return '"' .. text:gsub("\\", "\\\\"):gsub('"', '\\"'):gsub("%s+", " ") .. '"'
end

-- Python puts a file's name in place of an image's source.
function Image(image)
  local said = pandoc.utils.stringify(image.caption)
  if said == "" then
    said = "An image"
  end
  local source = "#picture(image(" .. quote(image.src) .. ", alt: " .. quote(said) .. "))"
  return pandoc.RawInline("typst", source)
end

-- Formulas need a text for those who hear the page: their TeX source.
function Math(math)
  local formula = pandoc.write(pandoc.Pandoc({ pandoc.Plain({ math }) }), "typst")
  return pandoc.RawInline(
    "typst",
    "#[#set math.equation(alt: " .. quote(math.text) .. ");" .. formula:gsub("%s+$", "") .. "]"
  )
end
