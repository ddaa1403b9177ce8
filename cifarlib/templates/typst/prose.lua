-- Prose of notebooks on its way from Markdown to Typst, through pandoc.

-- Each notebook cell arrives as a Div; a comment marks its end, so that the cells can be told apart.
function Div(div)
  if div.classes:includes("cell") then
    div.content:insert(pandoc.RawBlock("typst", "//end of cell"))
    return div.content
  end
end

-- Formulas need a text for those who hear the page: their TeX source.
function Math(math)
  local formula = pandoc.write(pandoc.Pandoc({ pandoc.Plain({ math }) }), "typst")
  local said = math.text:gsub("\\", "\\\\"):gsub('"', '\\"')
  return pandoc.RawInline(
    "typst",
    '#[#set math.equation(alt: "' .. said .. '");' .. formula:gsub("%s+$", "") .. "]"
  )
end
